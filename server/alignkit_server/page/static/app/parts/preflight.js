// What is known of a job before it starts.
import { bytes, count, words } from "../lib/format.js";
import { costOf, timeOf } from "../lib/jobs.js";
import { html } from "../lib/ui.js";
import { Facts } from "./common.js";

/** Rows, steps, tokens, time, cost and memory. */
export function Forecast({ found }) {
  const { memory } = found;
  return html`
    ${found.fits === false &&
    html`<div class="problem" role="alert"><p>It does not fit: ${bytes(memory.peak_bytes)} are needed, ${bytes(memory.available_bytes)} are there. A smaller micro-batch or max_length needs less.</p></div>`}
    <${Facts} facts=${[
      ["Rows", `${count(found.rows)}${found.dropped_rows ? `, of which ${count(found.dropped_rows)} are dropped` : ""}`],
      ["Steps", count(found.steps)],
      ["Tokens", count(found.tokens)],
      ["Time", timeOf(found)],
      ["Cost", costOf(found)],
      ["Place in the queue", count(found.queue_position)],
      ["Peak memory", memory ? `${bytes(memory.peak_bytes)} of ${bytes(memory.available_bytes)} (${memory.device})` : "not estimated for this model"],
      ["Trained parameters", memory && count(memory.trainable_parameters)],
      ["Each checkpoint", memory && bytes(memory.checkpoint_bytes)],
    ]} />
    ${memory &&
    html`<details><summary>Memory by kind</summary><${Facts} facts=${Object.entries(memory.bytes_by_kind).map(([kind, size]) => [words(kind), bytes(size)])} /></details>`}
  `;
}

/** Rows as the trainer sees them; the tokens that carry loss are marked. */
export function Rows({ preview, offset, turn }) {
  return html`
    <p class="quiet">Rendered by the model's own template, cut at ${count(preview.max_length)} tokens.${" "}
      <mark>Marked</mark> tokens carry loss, <s>struck</s> ones are cut.</p>
    ${preview.rows.length === 0 && html`<p>No further row.</p>`}
    ${preview.rows.map((row) => html`<${Row} key=${row.index} row=${row} />`)}
    <div class="row">
      <button type="button" disabled=${offset === 0} onClick=${() => turn(Math.max(0, offset - 3))}>Earlier rows</button>
      <button type="button" disabled=${preview.rows.length < 3} onClick=${() => turn(offset + 3)}>Later rows</button>
    </div>
  `;
}

const Row = ({ row }) => html`
  <article class="sample" aria-label="Row ${row.index}">
    <h3>Row ${row.index}${row.dropped && ", dropped: its prompt alone fills max_length"}</h3>
    ${row.notes.map((note) => html`<p class="quiet">${note}</p>`)}
    <div class="columns">
      ${Object.entries(row.sequences).map(
        ([name, segments]) => html`
          <div>
            <h4>${name} <small>${count(segments.reduce((sum, part) => sum + part.tokens, 0))} tokens</small></h4>
            <pre tabindex="0" aria-label="${name} of row ${row.index}">${segments.map((part) => html`<${Segment} part=${part} />`)}</pre>
          </div>
        `,
      )}
    </div>
  </article>
`;

function Segment({ part }) {
  const text = part.cut ? html`<s>${part.text}</s>` : part.text;
  return part.carries_loss ? html`<mark>${text}</mark>` : html`<span>${text}</span>`;
}
