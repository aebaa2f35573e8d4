// Choosing an uploaded file, or uploading one by a button or a drop.
import { bytes } from "../lib/format.js";
import { useAnswer, useSession } from "../lib/hooks.js";
import { html, useEffect, useState } from "../lib/ui.js";
import { Field, Problem } from "./common.js";

/** A list of the project's files, and a place to drop another. */
export function FileChoice({ label, value, choose, optional = false, onFiles = () => {} }) {
  const { api } = useSession();
  const answer = useAnswer(() => api.get("files", { purpose: "fine-tune" }), []);
  const files = answer.value?.data ?? [];
  useEffect(() => onFiles(files), [answer.value]);
  const uploaded = (file) => {
    choose(file.id);
    answer.reload();
  };
  return html`
    <div>
      <${Field} label=${label} hint=${optional ? "held out, evaluated while training" : "JSON Lines, JSON, CSV or Parquet"}>
        ${(field) => html`
          <select ...${field} value=${value} onChange=${(event) => choose(event.target.value)}>
            <option value="">${optional ? "none" : "choose a file"}</option>
            ${files.map((file) => html`<option value=${file.id}>${file.filename}, ${bytes(file.bytes)}</option>`)}
          </select>
        `}
      <//>
      <${Drop} label="Upload as the ${label.toLowerCase()}" onUploaded=${uploaded} />
      <${Problem} error=${answer.error} />
    </div>
  `;
}

/** A place to drop a file on, with a button for those who do not drag. */
export function Drop({ label, onUploaded }) {
  const { api } = useSession();
  const [sent, setSent] = useState(null);
  const [over, setOver] = useState(false);
  const [error, setError] = useState(null);
  const upload = async (file) => {
    if (!file) return;
    setError(null);
    setSent(0);
    try {
      onUploaded(await api.upload(file, setSent));
    } catch (refusal) {
      setError(refusal);
    } finally {
      setSent(null);
    }
  };
  const dropped = (event) => {
    event.preventDefault();
    setOver(false);
    upload(event.dataTransfer.files[0]);
  };
  return html`
    <label class="drop ${over ? "over" : ""}" onDragOver=${(event) => (event.preventDefault(), setOver(true))}
      onDragLeave=${() => setOver(false)} onDrop=${dropped}>
      <span>${sent === null ? `${label}: drop a file here or` : "Uploading …"}</span>
      ${sent === null
        ? html`<input type="file" onChange=${(event) => upload(event.target.files[0])} />`
        : html`<progress value=${sent} max="1" aria-label="Share that was sent"></progress>`}
    </label>
    <${Problem} error=${error} />
  `;
}
