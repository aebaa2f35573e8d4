// What the collapse guard drew and judged, evaluation by evaluation.
import { measure } from "../lib/format.js";
import { html, useMemo, useState } from "../lib/ui.js";
import { Table } from "./common.js";

/** The guard's verdict, and the answers of two evaluations side by side. */
export function Answers({ events, series }) {
  const drawn = useMemo(() => evaluations(events), [events]);
  const [left, setLeft] = useState(null);
  const [right, setRight] = useState(null);
  if (!drawn.length) return null;
  const before = drawn.find((one) => one.step === left) ?? drawn[0];
  const after = drawn.find((one) => one.step === right) ?? drawn.at(-1);
  return html`
    <section aria-labelledby="answers">
      <h2 id="answers">Answers and the collapse guard</h2>
      <${Verdict} drawn=${drawn} series=${series} />
      <div class="row">
        <${Step} label="Left" drawn=${drawn} value=${before.step} choose=${setLeft} />
        <${Step} label="Right" drawn=${drawn} value=${after.step} choose=${setRight} />
      </div>
      <${Table} caption="Answers of two evaluations" head=${["Prompt", title(before), title(after), "From the data"]}>
        ${after.answers.map(
          (answer, number) => html`
            <tr class="texts">
              <th scope="row">${answer.prompt}</th>
              <td>${before.answers[number]?.answer}</td>
              <td>${answer.answer}</td>
              <td class="quiet">${answer.known || "–"}</td>
            </tr>
          `,
        )}
      <//>
    </section>
  `;
}

function Verdict({ drawn, series }) {
  const bad = drawn.filter((one) => !one.sound);
  const last = (name) => series[`valid_answers_${name}`]?.values.at(-1);
  const measures = ["reference_logp", "kl", "repetition", "distinct_2", "good_logp"].filter((name) => last(name) !== undefined);
  return html`
    <p class=${bad.length ? "verdict bad" : "verdict good"}>
      ${bad.length
        ? html`<strong>Collapsed at step ${bad.map((one) => one.step).join(", ")}:</strong> ${bad.at(-1).collapse.join("; ")}`
        : html`<strong>Sound</strong> at ${drawn.length === 1 ? "the one evaluation" : `all ${drawn.length} evaluations`} so far`}
    </p>
    ${measures.length > 0 &&
    html`<p class="quiet">Last measures: ${measures.map((name) => `${name.replaceAll("_", " ")} ${measure(last(name))}`).join(", ")}</p>`}
  `;
}

const title = ({ step }) => (step === 0 ? "Before training" : `Step ${step}`);

const Step = ({ label, drawn, value, choose }) => html`
  <label>${label}${" "}
    <select value=${value} onChange=${(event) => choose(Number(event.target.value))}>
      ${drawn.map((one) => html`<option value=${one.step}>${title(one)}${one.sound ? "" : ", collapsed"}</option>`)}
    </select>
  </label>
`;

/** What the events hold of drawn answers, by step; of a step that was made again, the later ones. */
export function evaluations(events) {
  const found = new Map();
  for (const { data } of [...events].reverse()) {
    if (Array.isArray(data?.answers)) found.set(data.step, data);
  }
  return [...found.values()].sort((a, b) => a.step - b.step);
}
