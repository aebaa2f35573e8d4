// The models that the key may use.
import { moment } from "../lib/format.js";
import { useAnswer, useSession } from "../lib/hooks.js";
import { link } from "../lib/router.js";
import { html, useState } from "../lib/ui.js";
import { Archive } from "../parts/archive.js";
import { Action, Field, Heading, Loaded, Table } from "../parts/common.js";

/** Models to chat with, train on, download and delete. */
export function Models() {
  const { api } = useSession();
  const answer = useAnswer(() => api.get("models"), []);
  const [text, setText] = useState("");
  return html`
    <${Heading} title="Models" />
    <${Field} label="Find">${(field) => html`<input ...${field} type="search" value=${text} onInput=${(event) => setText(event.target.value)} />`}<//>
    <${Loaded} answer=${answer}>
      ${({ data }) => html`
        <${Table} caption="Models" head=${["Name", "Kind", "Owner", "Created", ""]}>
          ${data
            .filter((model) => model.id.toLowerCase().includes(text.toLowerCase()))
            .map((model) => html`<${Row} key=${model.id} model=${model} changed=${answer.reload} />`)}
        <//>
      `}
    <//>
  `;
}

function Row({ model, changed }) {
  const { api, can } = useSession();
  const path = `models/${encodeURIComponent(model.id)}`;
  const made = model.kind !== "base";
  const remove = async () => {
    await api.delete(path);
    changed();
  };
  return html`
    <tr>
      <th scope="row" class="name">${model.id}</th>
      <td class="name">${model.parent ? `${model.kind} of ${model.parent}` : model.kind}</td>
      <td>${model.owned_by}</td>
      <td class="nowrap">${moment(model.created)}</td>
      <td>
        <div class="row actions">
          ${can("inference") && html`<a class="button" href=${link(["playground"], { a: model.parent ?? model.id, b: model.id })}>Chat</a>`}
          ${made && can("read") && html`<${Archive} model=${model.id} whole=${model.kind === "full"} />`}
          ${made && can("train") && html`<${Action} label="Delete" kind="danger" ask="Delete the model ${model.id}?" done="The model was deleted." work=${remove} />`}
        </div>
      </td>
    </tr>
  `;
}
