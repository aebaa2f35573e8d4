// The table of all jobs.
import { count, moment, words } from "../lib/format.js";
import { useEvery, useSession } from "../lib/hooks.js";
import { JobList } from "../lib/job_list.js";
import { STATUSES, outlook, short } from "../lib/jobs.js";
import { go, link } from "../lib/router.js";
import { html, useEffect, useMemo, useState } from "../lib/ui.js";
import { MOST } from "./compare.js";
import { Heading, Problem, Status, Table } from "../parts/common.js";
import { Progress } from "../parts/progress.js";

const SECONDS = 3;
const ROWS = 50;

/** Jobs with filters; the filters are in the address, so that they can be linked to. */
export function Jobs({ query }) {
  const { api, can } = useSession();
  const list = useMemo(() => new JobList(api), [api]);
  const [jobs, setJobs] = useState(null);
  const [error, setError] = useState(null);
  const [chosen, setChosen] = useState(() => new Set());
  useEvery(
    SECONDS,
    () =>
      list.refresh().then(
        (found) => {
          setJobs(found);
          setError(null);
        },
        setError,
      ),
    [list],
  );
  const found = useMemo(() => (jobs ?? []).filter((job) => fits(job, query)), [jobs, query.text, query.status, query.method]);
  const filtered = Boolean(query.text || query.status || query.method);
  const last = Math.max(0, Math.ceil(found.length / ROWS) - 1);
  const page = Math.min(Math.max(0, Number(query.page) || 0), last);
  const shown = found.slice(page * ROWS, (page + 1) * ROWS);
  const refine = (changes) => go(link(["jobs"], { ...query, page: undefined, ...changes }), { replace: true });
  const choose = (id, on) => {
    const next = new Set(chosen);
    on ? next.add(id) : next.delete(id);
    setChosen(next);
  };
  return html`
    <div class="title">
      <${Heading} title="Jobs" />
      <div class="row">
        <${CompareLink} ids=${[...chosen]} label="Compare ${chosen.size}" />
        ${filtered && !chosen.size && html`<${CompareLink} ids=${found.map((job) => job.id)} label="Compare all ${found.length} found" />`}
        ${can("train") && html`<a class="button primary" href="#/new">New job</a>`}
      </div>
    </div>
    <${Problem} error=${error} />
    <${Filters} query=${query} jobs=${jobs ?? []} refine=${refine} />
    ${jobs === null
      ? !error && html`<p class="quiet" role="status">Loading …</p>`
      : jobs.length === 0
        ? html`<p>No job yet.${can("train") && html`${" "}<a href="#/new">Make the first one.</a>`}</p>`
        : html`
            <${Table} caption="Fine-tuning jobs" head=${["Compare", "Job", "Method", "Model", "Status", "Progress", "Time", "Created"]}>
              ${shown.map((job) => html`<${Row} key=${job.id} job=${job} chosen=${chosen.has(job.id)} choose=${choose} />`)}
            <//>
            <${Pager} page=${page} last=${last} total=${found.length} turn=${(to) => refine({ page: to || undefined })} />
          `}
  `;
}

/** A link to the comparison of as many jobs as it takes. */
const CompareLink = ({ ids, label }) =>
  ids.length > 1 && ids.length <= MOST
    ? html`<a class="button" href=${link(["compare"], { jobs: ids.join(",") })}>${label}</a>`
    : ids.length > MOST && html`<span class="quiet">at most ${MOST} jobs can be compared</span>`;

function Row({ job, chosen, choose }) {
  const label = job.metadata?.name ?? short(job.id);
  return html`
    <tr>
      <td><input type="checkbox" aria-label="Compare ${label}" checked=${chosen} onChange=${(event) => choose(job.id, event.target.checked)} /></td>
      <th scope="row"><a href=${link(["jobs", job.id])} title=${job.id}>${label}</a></th>
      <td>${job.method.type}</td>
      <td class="name" title=${job.model}>${job.model}</td>
      <td><${Status} status=${job.status} /></td>
      <td><${Progress} job=${job} /></td>
      <td class="nowrap">${outlook(job)}</td>
      <td class="nowrap">${moment(job.created_at)}</td>
    </tr>
  `;
}

function Filters({ query, jobs, refine }) {
  const methods = useMemo(() => [...new Set(jobs.map((job) => job.method.type))].sort(), [jobs]);
  const [text, setText] = useState(query.text ?? "");
  useEffect(() => {
    const timer = setTimeout(() => text !== (query.text ?? "") && refine({ text }), 200);
    return () => clearTimeout(timer);
  }, [text]);
  return html`
    <form class="row filters" role="search" aria-label="Jobs" onSubmit=${(event) => event.preventDefault()}>
      <input type="search" aria-label="Id, model, file or label" placeholder="Id, model, file or label"
        value=${text} onInput=${(event) => setText(event.target.value)} />
      <select aria-label="Status" value=${query.status ?? ""} onChange=${(event) => refine({ status: event.target.value })}>
        <option value="">Every status</option>
        ${STATUSES.map((status) => html`<option value=${status}>${words(status)}</option>`)}
      </select>
      <select aria-label="Method" value=${query.method ?? ""} onChange=${(event) => refine({ method: event.target.value })}>
        <option value="">Every method</option>
        ${methods.map((method) => html`<option value=${method}>${method}</option>`)}
      </select>
    </form>
  `;
}

function Pager({ page, last, total, turn }) {
  return html`
    <nav class="row pager" aria-label="Pages of the table">
      <span role="status">${count(total)} ${total === 1 ? "job" : "jobs"}${last > 0 && `, page ${page + 1} of ${last + 1}`}</span>
      ${last > 0 &&
      html`
        <button type="button" disabled=${page === 0} onClick=${() => turn(page - 1)}>Newer</button>
        <button type="button" disabled=${page === last} onClick=${() => turn(page + 1)}>Older</button>
      `}
    </nav>
  `;
}

function fits(job, { text = "", status, method }) {
  if (status && job.status !== status) return false;
  if (method && job.method.type !== method) return false;
  if (!text) return true;
  const labels = Object.entries(job.metadata ?? {}).flat();
  const places = [job.id, job.model, job.fine_tuned_model ?? "", job.training_file, ...labels];
  return places.some((place) => place.toLowerCase().includes(text.toLowerCase()));
}
