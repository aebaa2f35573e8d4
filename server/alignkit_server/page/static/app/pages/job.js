// One job: what it is, how it goes, what came of it.
import { chartsOf } from "../lib/curves.js";
import { bytes, count, duration, moment } from "../lib/format.js";
import { useSeen, useSession } from "../lib/hooks.js";
import { JobFeed } from "../lib/job_feed.js";
import { actionsOf, costOf, isOver, isSweep, outlook, settingsOf, timeOf } from "../lib/jobs.js";
import { link } from "../lib/router.js";
import { html, useEffect, useMemo, useRef, useState } from "../lib/ui.js";
import { Answers } from "../parts/answers.js";
import { Archive } from "../parts/archive.js";
import { Chart } from "../parts/chart.js";
import { Action, Facts, Heading, Problem, Status } from "../parts/common.js";
import { Checkpoints, Events, Log, Recipe, Settings } from "../parts/job_details.js";
import { Progress } from "../parts/progress.js";

const CHARTS = 8;

/** A job, live. */
export function Job({ id }) {
  const { api } = useSession();
  const feed = useRef(null);
  const [state, setState] = useState(null);
  const seen = useSeen();
  useEffect(() => {
    if (!seen) return undefined; // a browser has six connections to a server: a hidden tab must not hold one
    feed.current = new JobFeed(api, id, setState);
    feed.current.run();
    return () => feed.current.stop();
  }, [api, id, seen]);
  const { job, error } = state ?? {};
  if (!job) {
    return html`
      <${Heading} title=${id} />
      <${Problem} error=${error} />
      ${!error && html`<p class="quiet" role="status">Loading …</p>`}
      <p><a href="#/jobs">All jobs</a></p>
    `;
  }
  return html`
    <div class="title">
      <${Heading} title=${job.metadata?.name ?? job.id} />
      <${Actions} job=${job} taken=${(changed) => feed.current.take(changed)} />
    </div>
    <${Problem} error=${error} />
    <${Overview} job=${job} state=${state} />
    <${Curves} series=${state.series} />
    <${Answers} events=${state.messages} series=${state.series} />
    <${Checkpoints} job=${job} events=${state.messages} />
    <${Settings} job=${job} />
    <${Recipe} job=${job} />
    <${Log} job=${job} />
    <${Events} events=${state.messages} live=${state.live} />
  `;
}

function Actions({ job, taken }) {
  const { api, can } = useSession();
  if (!can("train")) return null;
  const path = `fine_tuning/jobs/${encodeURIComponent(job.id)}`;
  return html`
    <div class="row">
      ${actionsOf(job).map(
        ([label, name, question]) => html`
          <${Action} key=${name} label=${label} ask=${question} kind=${question ? "danger" : ""}
            work=${async () => taken(await api.post(`${path}/${name}`))} />
        `,
      )}
      <a class="button" href=${link(["new"], { clone: job.id })}>Clone</a>
    </div>
  `;
}

function Overview({ job, state }) {
  const { can } = useSession();
  return html`
    <section aria-label="Overview">
      <p class="row">
        <${Status} status=${job.status} />
        ${!isOver(job) && html`<${Progress} job=${job} steps=${state.steps} />`}
        <span>${outlook(job)}</span>
        ${state.live && html`<span class="live" title="Events arrive as they happen">live</span>`}
      </p>
      ${job.error && html`<div class="problem" role="alert"><p><code>${job.error.code}</code></p><pre tabindex="0" aria-label="Error">${job.error.message}</pre></div>`}
      <${Facts} facts=${[
        ["Job", job.id],
        ["Method", job.method.type],
        ["Trained from", job.model],
        ["Fine-tuned model", job.fine_tuned_model],
        ["Training file", job.training_file],
        ["Validation file", job.validation_file],
        ["Seed", job.seed],
        ["Trained tokens", count(job.trained_tokens)],
        ["Peak memory", bytes(job.usage.peak_memory_bytes)],
        ["Created", moment(job.created_at)],
        ["Finished", moment(job.finished_at)],
        ...Object.entries(job.metadata ?? {}).map(([name, value]) => [name, isSweep(name, value) ? html`<a href=${link(["compare"], { sweep: value })}>${value}</a>` : value]),
      ]} />
      ${job.fine_tuned_model &&
      html`
        <div class="row">
          ${can("inference") && html`<a class="button" href=${link(["playground"], { a: job.model, b: job.fine_tuned_model })}>Chat with it beside ${job.model}</a>`}
          ${can("read") && html`<${Archive} model=${job.fine_tuned_model} whole=${settingsOf(job).trained_weights === "all"} />`}
        </div>
      `}
      ${can("train") && html`<${Estimate} job=${job} steps=${state.steps} />`}
    </section>
  `;
}

/** What the job was expected to take, beside what it took. Asked for by hand, since the server reads the file for it. */
function Estimate({ job, steps }) {
  const { api } = useSession();
  const [found, setFound] = useState(null);
  const ask = async () => {
    const { model, training_file, validation_file, method } = job;
    setFound(await api.ask("fine_tuning/jobs/estimate", { model, training_file, validation_file, method }));
  };
  if (!found) return html`<${Action} label="Compare with an estimate" work=${ask} />`;
  const { run_seconds: ran, peak_memory_bytes: peak } = job.usage;
  const took = isOver(job) ? ran : null;
  const rows = [
    ["Time", timeOf(found), duration(took)],
    ...(found.cost ? [["Cost", costOf(found), took ? costOf({ cost: { ...found.cost, amount: (ran / 3600) * found.cost.gpus * found.cost.per_gpu_hour } }) : ""]] : []),
    ["Tokens", count(found.tokens), count(job.trained_tokens)],
    ["Steps", count(found.steps), count(steps?.step)],
    ["Peak memory", found.memory ? `${bytes(found.memory.peak_bytes)} of ${bytes(found.memory.available_bytes)}` : "not estimated", bytes(peak)],
  ];
  return html`
    <table class="small">
      <caption class="unseen">Estimate beside what the job took</caption>
      <thead><tr><td></td><th scope="col">estimated</th><th scope="col">took</th></tr></thead>
      <tbody>${rows.map(([name, before, after]) => html`<tr><th scope="row">${name}</th><td>${before}</td><td>${after || "–"}</td></tr>`)}</tbody>
    </table>
  `;
}

function Curves({ series }) {
  const charts = useMemo(() => chartsOf(series), [series]);
  const [all, setAll] = useState(false);
  if (!charts.length) return null;
  const shown = all ? charts : charts.slice(0, CHARTS);
  return html`
    <section aria-labelledby="curves">
      <h2 id="curves">Curves</h2>
      <div class="charts">${shown.map((chart) => html`<${Chart} key=${chart.title} ...${chart} />`)}</div>
      ${charts.length > CHARTS &&
      html`<button type="button" aria-expanded=${all} onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show all ${charts.length}`}</button>`}
    </section>
  `;
}
