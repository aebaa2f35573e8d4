// The project's files.
import { bytes, moment } from "../lib/format.js";
import { useAnswer, useSession } from "../lib/hooks.js";
import { link } from "../lib/router.js";
import { html, useState } from "../lib/ui.js";
import { Action, Heading, Loaded, Table } from "../parts/common.js";
import { Drop } from "../parts/file_choice.js";

const ROWS = 100;

/** Files to upload, download, train on and delete. */
export function Files() {
  const { api, can, notify } = useSession();
  const answer = useAnswer(() => api.get("files"), []);
  const [shown, setShown] = useState(ROWS);
  const uploaded = (file) => {
    notify(`${file.filename} was uploaded.`);
    answer.reload();
  };
  return html`
    <${Heading} title="Files" />
    ${can("train") && html`<${Drop} label="Upload" onUploaded=${uploaded} />`}
    <${Loaded} answer=${answer}>
      ${({ data }) =>
        data.length === 0
          ? html`<p>No file yet.</p>`
          : html`
              <${Table} caption="Files" head=${["Name", "Id", "Size", "Purpose", "Created", "Expires", ""]}>
                ${data.slice(0, shown).map((file) => html`<${Row} key=${file.id} file=${file} changed=${answer.reload} />`)}
              <//>
              ${data.length > shown && html`<button type="button" onClick=${() => setShown(shown + ROWS)}>Show more of ${data.length}</button>`}
            `}
    <//>
  `;
}

function Row({ file, changed }) {
  const { api, can } = useSession();
  const path = `files/${encodeURIComponent(file.id)}`;
  const remove = async () => {
    await api.delete(path);
    changed();
  };
  return html`
    <tr>
      <th scope="row" class="name">${file.filename}</th>
      <td class="name">${file.id}</td>
      <td class="nowrap">${bytes(file.bytes)}</td>
      <td>${file.purpose}</td>
      <td>${moment(file.created_at)}</td>
      <td>${moment(file.expires_at)}</td>
      <td>
        <div class="row">
          <${Action} label="Download" work=${() => api.save(`${path}/content`)} />
          ${can("train") && file.purpose === "fine-tune" && html`<a class="button" href=${link(["new"], { file: file.id })}>Train on it</a>`}
          ${can("train") && html`<${Action} label="Delete" kind="danger" ask="Delete ${file.filename}?" done="${file.filename} was deleted." work=${remove} />`}
        </div>
      </td>
    </tr>
  `;
}
