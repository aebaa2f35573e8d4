// Taking a model away in one of the forms that the service makes.
import { useSession } from "../lib/hooks.js";
import { html, useState } from "../lib/ui.js";
import { Action } from "./common.js";

const FORMS = [
  ["adapter", "adapter (LoRA)"],
  ["merged", "merged weights"],
  ["gguf", "GGUF"],
  ["ollama", "for Ollama"],
];

/** A choice of form and a button; `whole` where all weights were trained, so that there is no adapter. */
export function Archive({ model, whole }) {
  const { api } = useSession();
  const forms = whole ? FORMS.slice(1) : FORMS;
  const [form, setForm] = useState(forms[0][0]);
  return html`
    <span class="row">
      <select aria-label="Form of ${model}" value=${form} onChange=${(event) => setForm(event.target.value)}>
        ${forms.map(([name, label]) => html`<option value=${name}>${label}</option>`)}
      </select>
      <${Action} label="Download" done="The download begins." work=${() => api.save(`models/${encodeURIComponent(model)}/archive`, { form })} />
    </span>
  `;
}
