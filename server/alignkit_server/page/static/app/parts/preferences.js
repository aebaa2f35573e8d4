// Rows of preference data that were made by clicks: kept in this browser until they are a file.
import { saveAs } from "../lib/api.js";
import { count } from "../lib/format.js";
import { useSession } from "../lib/hooks.js";
import { go, link } from "../lib/router.js";
import { html } from "../lib/ui.js";
import { Action } from "./common.js";

const NAME = "preferences.jsonl";

/** A row in OpenAI's form. */
export const preference = (messages, better, worse) => ({
  input: { messages },
  preferred_output: [{ role: "assistant", content: better.trim() }],
  non_preferred_output: [{ role: "assistant", content: worse.trim() }],
});

/** The rows, with what becomes of them. */
export function Preferences({ rows, clear }) {
  const { api, can } = useSession();
  if (!rows.length) return null;
  const file = () => new File(rows.map((row) => `${JSON.stringify(row)}\n`), NAME, { type: "application/jsonl" });
  const upload = async () => {
    const { id } = await api.upload(file(), () => {});
    clear();
    go(link(["new"], { file: id }));
  };
  return html`
    <section aria-labelledby="preferences">
      <h2 id="preferences">Preferences</h2>
      <div class="row">
        <span>${count(rows.length)} ${rows.length === 1 ? "row" : "rows"}, kept in this browser</span>
        ${can("train") && html`<${Action} label="Upload and train on them" work=${upload} />`}
        <button type="button" onClick=${() => saveAs(file(), NAME)}>Download</button>
        <${Action} label="Discard" kind="danger" ask="Discard the rows?" work=${async () => clear()} />
      </div>
    </section>
  `;
}
