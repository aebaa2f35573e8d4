// Jobs beside each other: curves overlaid, settings that differ, answers to the same prompts.
import { chartsOf } from "../lib/curves.js";
import { literal, measure } from "../lib/format.js";
import { useAnswer, useSession } from "../lib/hooks.js";
import { settingsOf, short } from "../lib/jobs.js";
import { link } from "../lib/router.js";
import { html, useMemo } from "../lib/ui.js";
import { evaluations } from "../parts/answers.js";
import { Chart } from "../parts/chart.js";
import { Action, Heading, Loaded, Status, Table } from "../parts/common.js";
import { Frontier } from "../parts/frontier.js";

export const MOST = 24;
const DRAWN = 6; // lines that can be told apart
const POINTS = 500;

/** The jobs named in the query, or those of a sweep. */
export function Compare({ query }) {
  const named = (query.jobs ?? "").split(",").filter(Boolean);
  return html`
    <${Heading} title="Compare" />
    ${query.sweep ? html`<${Sweep} id=${query.sweep} />` : html`<${Jobs} named=${named} />`}
  `;
}

function Sweep({ id }) {
  const { api } = useSession();
  const path = `fine_tuning/sweeps/${encodeURIComponent(id)}`;
  const answer = useAnswer((signal) => api.get(path, {}, { signal }), [path]);
  return html`
    <${Loaded} answer=${answer}>
      ${(sweep) => html`
        <p class="row">
          <span>Sweep <span class="name">${sweep.id}</span>: ${sweep.status}</span>
          <${Action} label="Download the report of the sweep" work=${() => api.download(`${path}/report`, `${sweep.id}.html`)} />
        </p>
        ${sweep.error && html`<p class="problem">${sweep.error.message}</p>`}
        <${Jobs} named=${sweep.points.map((point) => point.job)} />
      `}
    <//>
  `;
}

function Jobs({ named }) {
  const { api } = useSession();
  const ids = named.slice(0, MOST);
  const answer = useAnswer(() => Promise.all(ids.map((id) => look(api, id))), [ids.join(",")]);
  if (ids.length < 2) {
    return html`<p>Choose two to ${MOST} jobs in <a href="#/jobs">the table of jobs</a>.</p>`;
  }
  return html`
    ${named.length > MOST && html`<p class="problem">The first ${MOST} of ${named.length} jobs.</p>`}
    <${Loaded} answer=${answer}>${(runs) => html`<${Runs} runs=${runs} />`}<//>
  `;
}

async function look(api, id) {
  const path = `fine_tuning/jobs/${encodeURIComponent(id)}`;
  const [job, metrics, told] = await Promise.all([
    api.get(path),
    api.get(`${path}/metrics`, { max_points: POINTS }),
    api.get(`${path}/events`, { type: "message", limit: 1000 }),
  ]);
  return { job, name: job.metadata?.name ?? short(job.id), series: metrics.series, drawn: evaluations(told.data) };
}

function Runs({ runs }) {
  const drawn = runs.slice(0, DRAWN);
  const charts = useMemo(() => overlaid(drawn), [runs]);
  return html`
    <${Differences} runs=${runs} />
    <section aria-labelledby="curves">
      <h2 id="curves">Curves</h2>
      ${runs.length > DRAWN && html`<p class="quiet">Of the first ${DRAWN} jobs; the others are in the tables and in the frontier.</p>`}
      <div class="charts">${charts.map((chart) => html`<${Chart} key=${chart.title} ...${chart} />`)}</div>
    </section>
    <${Frontier} runs=${runs} />
    <${SamePrompts} runs=${drawn} />
  `;
}

/** Every measure that some run has, a line a run: of evaluations where there are any, else of training. */
function overlaid(runs) {
  const titles = new Map();
  for (const { series } of runs) {
    for (const name of Object.keys(series)) {
      const measureName = name.replace(/^(train|full_valid|valid)_/, "");
      if (!titles.has(measureName) || name.startsWith("valid_")) titles.set(measureName, name);
    }
  }
  const order = chartsOf(Object.fromEntries([...titles.values()].map((name) => [name, { steps: [], values: [] }])));
  const ordered = order.flatMap((chart) => chart.lines.map((line) => line.name.replaceAll(" ", "_")));
  return ordered.map((name) => ({
    title: name.replaceAll("_", " "),
    lines: runs.filter((run) => run.series[name]).map((run) => ({ name: run.name, ...run.series[name] })),
  }));
}

function Differences({ runs }) {
  const rows = useMemo(() => tableOf(runs), [runs]);
  const [differing, same] = [true, false].map((differs) => rows.filter((row) => row.differs === differs));
  const head = ["", ...runs.map((run) => run.name)];
  return html`
    <section aria-labelledby="differences">
      <h2 id="differences">Settings</h2>
      <${Table} caption="Settings of the jobs that differ" head=${head}>
        <tr><th scope="row">job</th>${runs.map(({ job }) => html`<td><a href=${link(["jobs", job.id])}>${short(job.id)}</a> <${Status} status=${job.status} /></td>`)}</tr>
        ${differing.map((row) => html`<${Setting} key=${row.name} ...${row} />`)}
      <//>
      <details>
        <summary>${same.length} settings that are the same</summary>
        <${Table} caption="Settings of the jobs that are the same" head=${head}>${same.map((row) => html`<${Setting} key=${row.name} ...${row} />`)}<//>
      </details>
    </section>
  `;
}

const Setting = ({ name, values, differs }) => html`
  <tr class=${differs ? "differs" : ""}>
    <th scope="row">${name}</th>
    ${values.map((value) => html`<td class="name">${value}</td>`)}
  </tr>
`;

function tableOf(runs) {
  const all = runs.map(({ job, series }) => ({
    model: job.model,
    method: job.method.type,
    "training file": job.training_file,
    "validation file": job.validation_file ?? "–",
    seed: String(job.seed),
    ...Object.fromEntries(Object.entries(settingsOf(job)).map(([name, value]) => [name, value === null ? "–" : literal(value)])),
    "last valid loss": measure(series.valid_loss?.values.at(-1)),
    "last train loss": measure(series.train_loss?.values.at(-1)),
  }));
  const names = [...new Set(all.flatMap(Object.keys))];
  return names.map((name) => {
    const values = all.map((one) => one[name] ?? "–");
    return { name, values, differs: new Set(values).size > 1 };
  });
}

function SamePrompts({ runs }) {
  const answered = runs.map((run) => new Map((run.drawn.at(-1)?.answers ?? []).map((one) => [one.prompt, one.answer])));
  const shared = [...answered[0].keys()].filter((prompt) => answered.every((answers) => answers.has(prompt)));
  if (!shared.length) return null;
  return html`
    <section aria-labelledby="prompts">
      <h2 id="prompts">Answers to the same prompts</h2>
      <${Table} caption="Each run's last answers" head=${["Prompt", ...runs.map((run) => run.name)]}>
        ${shared.map((prompt) => html`<tr class="texts"><th scope="row">${prompt}</th>${answered.map((answers) => html`<td>${answers.get(prompt)}</td>`)}</tr>`)}
      <//>
    </section>
  `;
}
