import { App } from "./app.js";
import { html, render } from "./lib/ui.js";

render(html`<${App} />`, document.getElementById("app"));
