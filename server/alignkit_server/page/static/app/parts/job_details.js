// The parts of a job's page that are looked up rather than watched.
import { metricsOf } from "../lib/checkpoints.js";
import { literal, measure, moment, words } from "../lib/format.js";
import { useAnswer, useEvery, useSession } from "../lib/hooks.js";
import { isOver, settingsOf } from "../lib/jobs.js";
import { link } from "../lib/router.js";
import { html, useMemo, useState } from "../lib/ui.js";
import { evaluations } from "./answers.js";
import { Action, Code, Loaded, Table } from "./common.js";

const EVENTS = 50;
const LOG_LINES = 200;
const LOG_SECONDS = 5;

/** The checkpoints that can be used: the metrics that tell most and the guard's verdict; all others on request. */
export function Checkpoints({ job, events }) {
  const { api, can } = useSession();
  const [all, setAll] = useState(false);
  const verdicts = useMemo(() => new Map(evaluations(events).map(({ step, sound }) => [step, sound])), [events]);
  const path = `fine_tuning/jobs/${encodeURIComponent(job.id)}/checkpoints`;
  const answer = useAnswer(() => api.all(path, {}, 1000), [path, job.status]);
  if (answer.value?.length === 0) return null;
  const { head, rest } = metricsOf(answer.value ?? [], settingsOf(job).best_metric);
  const names = all ? [...head, ...rest] : head;
  const columns = ["Step", "Model", ...head.map(words), "Guard", ...(all ? rest.map(words) : []), "Created", ""];
  return html`
    <section aria-labelledby="checkpoints">
      <div class="title">
        <h2 id="checkpoints">Checkpoints</h2>
        ${rest.length > 0 &&
        html`<button type="button" aria-expanded=${all} onClick=${() => setAll(!all)}>${all ? "Main metrics" : `All ${head.length + rest.length} metrics`}</button>`}
      </div>
      <${Loaded} answer=${answer}>
        ${(found) => html`
          <${Table} caption="Published checkpoints" head=${columns} kind=${all ? "" : "fitted"}>
            ${found.map(
              (one) => html`
                <tr>
                  <th scope="row">${one.step_number}</th>
                  <td class="name">${one.fine_tuned_model_checkpoint}</td>
                  ${names.slice(0, head.length).map((name) => html`<td>${measure(one.metrics[name])}</td>`)}
                  <td><${Guard} sound=${verdicts.get(one.step_number)} /></td>
                  ${names.slice(head.length).map((name) => html`<td>${measure(one.metrics[name])}</td>`)}
                  <td class="nowrap">${moment(one.created_at)}</td>
                  <td>${can("inference") && html`<a href=${link(["playground"], { a: job.model, b: one.fine_tuned_model_checkpoint })}>Chat<span class="unseen"> with the checkpoint of step ${one.step_number}</span></a>`}</td>
                </tr>
              `,
            )}
          <//>
        `}
      <//>
    </section>
  `;
}

/** The guard's verdict on the answers drawn at a step; a dash where it drew none. */
const Guard = ({ sound }) =>
  sound === undefined ? "–" : sound ? html`<span class="good">sound</span>` : html`<strong class="bad">collapsed</strong>`;

/** The hyperparameters as they were resolved. */
export const Settings = ({ job }) => html`
  <section aria-labelledby="settings">
    <h2 id="settings">Settings</h2>
    <details>
      <summary>${Object.keys(settingsOf(job)).length} hyperparameters of ${job.method.type}</summary>
      <dl class="facts">
        ${Object.entries(settingsOf(job)).map(
          ([name, value]) => html`<div><dt>${name}</dt><dd>${value === null ? "–" : literal(value)}</dd></div>`,
        )}
      </dl>
    </details>
  </section>
`;

/** The recipe, which runs elsewhere too. */
export function Recipe({ job }) {
  const { api } = useSession();
  const [text, setText] = useState(null);
  const path = `fine_tuning/jobs/${encodeURIComponent(job.id)}/recipe`;
  return html`
    <section aria-labelledby="recipe">
      <h2 id="recipe">Recipe</h2>
      <div class="row">
        ${text === null && html`<${Action} label="Show the recipe" work=${async () => setText(await api.text(path))} />`}
        <${Action} label="Download the recipe" work=${() => api.download(path, `${job.id}.yaml`)} />
        <${Action} label="Download the report" work=${() => api.download(`fine_tuning/jobs/${encodeURIComponent(job.id)}/report`, `${job.id}.html`)} />
        ${job.result_files.map(
          (file) => html`<${Action} key=${file} label="Download the metrics" work=${() => api.download(`files/${encodeURIComponent(file)}/content`, `${job.id}.csv`)} />`,
        )}
      </div>
      ${text !== null && html`<${Code} label="recipe.yaml" text=${text} />`}
    </section>
  `;
}

/** The end of what its training process wrote; read again while the job runs. */
export function Log({ job }) {
  const [open, setOpen] = useState(false);
  return html`
    <section aria-labelledby="log">
      <h2 id="log">Log</h2>
      <details onToggle=${(event) => setOpen(event.target.open)}>
        <summary>The last ${LOG_LINES} lines of the training process</summary>
        ${open && html`<${Lines} job=${job} />`}
      </details>
    </section>
  `;
}

function Lines({ job }) {
  const { api } = useSession();
  const path = `fine_tuning/jobs/${encodeURIComponent(job.id)}/logs`;
  const answer = useAnswer((signal) => api.get(path, { tail: LOG_LINES }, { signal }), [path, job.status]);
  useEvery(LOG_SECONDS, () => isOver(job) || answer.loading || answer.reload(), [path, job.status]);
  return html`
    <${Loaded} answer=${answer}>
      ${({ lines }) =>
        lines.length
          ? html`<${Code} label="train.log" text=${lines.join("\n")} />`
          : html`<p class="quiet">There is no log: the job has not started, or its folder was pruned.</p>`}
    <//>
  `;
}

/** What the job reported, newest first. */
export function Events({ events, live }) {
  const [all, setAll] = useState(false);
  const shown = all ? events : events.slice(0, EVENTS);
  return html`
    <section aria-labelledby="events">
      <h2 id="events">Events</h2>
      <ol class="events" reversed aria-live=${live ? "polite" : "off"} aria-relevant="additions">
        ${shown.map(
          (event) => html`
            <li key=${event.id} class="level-${event.level}">
              <time datetime=${new Date(event.created_at * 1000).toISOString()}>${moment(event.created_at)}</time>
              ${event.level !== "info" && html`<strong>${event.level}</strong>`}
              <span>${event.message}</span>
            </li>
          `,
        )}
      </ol>
      ${events.length > shown.length && html`<button type="button" onClick=${() => setAll(true)}>Show all ${events.length}</button>`}
    </section>
  `;
}
