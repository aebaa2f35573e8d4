import { Heading } from "../parts/common.js";
import { html } from "../lib/ui.js";

/** An address that is none. */
export const Missing = () => html`<${Heading} title="No such page" /><p><a href="#/jobs">All jobs</a></p>`;
