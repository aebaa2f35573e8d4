// A new job: file, model, method, options; what it would train on and take; then the start.
import { useAnswer, useSession, useSettled } from "../lib/hooks.js";
import { commandOf, formLike, optionOf, pythonOf, requestOf } from "../lib/request.js";
import { go, link } from "../lib/router.js";
import { html, useEffect, useMemo, useState } from "../lib/ui.js";
import { Action, Code, Field, Heading, Loaded, Problem } from "../parts/common.js";
import { FileChoice } from "../parts/file_choice.js";
import { Forecast, Rows } from "../parts/preflight.js";

const EMPTY = { model: "", training_file: "", validation_file: "", method: "dpo", settings: {}, suffix: "", seed: "", name: "" };
const STILL_MILLISECONDS = 700;
/** Options of every method that most jobs set. */
const USUAL = ["n_epochs", "max_steps", "batch_size", "learning_rate_multiplier", "max_length", "lora_rank"];

/** The form; with `clone` in the query filled in like that job, with `file` with that file chosen. */
export function NewJob({ query }) {
  const { api } = useSession();
  const answer = useAnswer(async () => {
    const [methods, models, like] = await Promise.all([
      api.get("fine_tuning/methods"),
      api.get("models"),
      query.clone && api.get(`fine_tuning/jobs/${encodeURIComponent(query.clone)}`),
    ]);
    return { methods: methods.data, models: models.data, like };
  }, [query.clone]);
  return html`
    <${Heading} title="New job" />
    <${Loaded} answer=${answer}>
      ${({ methods, models, like }) => {
        const form = like ? formLike(like) : { ...EMPTY, model: models[0]?.id ?? "", training_file: query.file ?? "" };
        return html`<${Form} key=${`${query.clone} ${query.file}`} methods=${methods} models=${models} initial=${form} />`;
      }}
    <//>
  `;
}

function Form({ methods, models, initial }) {
  const { api, notify } = useSession();
  const [form, setForm] = useState(initial);
  const [files, setFiles] = useState([]);
  const [refusal, setRefusal] = useState(null);
  const change = (changes) => {
    setForm((before) => ({ ...before, ...changes }));
    setRefusal(null);
  };
  const method = methods.find((one) => one.id === form.method) ?? methods[0];
  const request = useMemo(() => requestOf(form, method), [form, method]);
  const names = (id) => files.find((file) => file.id === id)?.filename ?? id;
  const ready = form.model !== "" && form.training_file !== "";
  const start = async () => {
    try {
      const job = await api.ask("fine_tuning/jobs", request);
      notify("The job was created.");
      go(link(["jobs", job.id]));
    } catch (error) {
      setRefusal(error); // below the form, where it can be read in full
    }
  };
  const setting = (name, value) => change({ settings: { ...form.settings, [name]: value } });
  return html`
    <form onSubmit=${(event) => event.preventDefault()}>
      <fieldset>
        <legend>Data</legend>
        <div class="grid">
          <${FileChoice} label="Training file" value=${form.training_file} onFiles=${setFiles} choose=${(id) => change({ training_file: id })} />
          <${FileChoice} label="Validation file" optional value=${form.validation_file} choose=${(id) => change({ validation_file: id })} />
        </div>
      </fieldset>
      <fieldset>
        <legend>Model and method</legend>
        <div class="grid">
          <${Field} label="Model" hint="a base model, or one that a job made">
            ${(field) => html`
              <select ...${field} value=${form.model} onChange=${(event) => change({ model: event.target.value })}>
                ${models.map((model) => html`<option value=${model.id}>${model.id}</option>`)}
              </select>
            `}
          <//>
          <${Field} label="Method" hint="${method.description} Rows: ${method.rows}.">
            ${(field) => html`
              <select ...${field} value=${method.id} onChange=${(event) => change({ method: event.target.value })}>
                ${methods.map((one) => html`<option value=${one.id}>${one.id}</option>`)}
              </select>
            `}
          <//>
          <${Text} label="Name" hint="a label, to find the job by" value=${form.name} set=${(name) => change({ name })} />
          <${Text} label="Suffix" hint="part of the new model's name" value=${form.suffix} set=${(suffix) => change({ suffix })} />
          <${Text} label="Seed" hint="a whole number; drawn where it is left out" value=${form.seed} set=${(seed) => change({ seed: seed.replace(/\D/g, "") })} />
        </div>
      </fieldset>
      <${Options} method=${method} methods=${methods} settings=${form.settings} set=${setting} refusal=${refusal} />
    </form>
    ${ready
      ? html`<${Preflight} request=${request} />`
      : html`<p class="quiet">Choose a model and a file to see what the job would train on.</p>`}
    <${Problem} error=${refusal} />
    <p class="row"><${Action} label="Start the job" kind="primary" disabled=${!ready} work=${start} /></p>
    ${ready &&
    html`
      <section aria-labelledby="code">
        <h2 id="code">The same from a program</h2>
        <${Code} label="Python, with the official client" text=${pythonOf(request, names)} />
        <${Code} label="Shell" text=${commandOf(request, names)} />
      </section>
    `}
  `;
}

const Text = ({ label, hint, value, set }) => html`
  <${Field} label=${label} hint=${hint}>
    ${(field) => html`<input ...${field} value=${value} onInput=${(event) => set(event.target.value)} />`}
  <//>
`;

/** The method's own options and the usual ones; the others, which every method has, are folded away. */
function Options({ method, methods, settings, set, refusal }) {
  const shared = useMemo(() => sharedOptions(methods), [methods]);
  const names = Object.keys(method.hyperparameters.properties);
  const own = names.filter((name) => !shared.has(name));
  const usual = USUAL.filter((name) => shared.has(name));
  const more = names.filter((name) => shared.has(name) && !usual.includes(name));
  const field = (name) => html`
    <${Option} key=${name} name=${name} schema=${method.hyperparameters.properties[name]} value=${settings[name]}
      required=${method.hyperparameters.required?.includes(name)} set=${(value) => set(name, value)}
      error=${refusal?.param?.endsWith(`.${name}`) ? refusal.message : null} />
  `;
  return html`
    ${own.length > 0 && html`<fieldset><legend>Options of ${method.id}</legend><div class="grid">${own.map(field)}</div></fieldset>`}
    <fieldset><legend>Training</legend><div class="grid">${usual.map(field)}</div></fieldset>
    <details>
      <summary>More options of every method</summary>
      <div class="grid">${more.map(field)}</div>
    </details>
  `;
}

function Option({ name, schema, value, required, set, error }) {
  const { kind, choices, hint, initial } = useMemo(() => optionOf(schema), [schema]);
  const changed = (event) => set(event.target.value);
  return html`
    <${Field} label=${required ? `${name} (required)` : name} hint=${hint} error=${error}>
      ${(field) =>
        kind === "choice"
          ? html`<select ...${field} value=${value ?? initial} onChange=${changed}>
              ${!choices.includes(initial) && html`<option value=""></option>`}
              ${choices.map((choice) => html`<option value=${choice}>${choice}</option>`)}
            </select>`
          : html`<input ...${field} value=${value ?? ""} placeholder=${initial} onInput=${changed} />`}
    <//>
  `;
}

/** What the job would train on and take, asked anew when the form has stood still for a moment. */
function Preflight({ request }) {
  const { api, can } = useSession();
  const settled = useSettled(request, STILL_MILLISECONDS);
  const key = JSON.stringify(settled);
  const [offset, setOffset] = useState(0);
  useEffect(() => setOffset(0), [settled.training_file]);
  const rows = useAnswer((signal) => api.ask("fine_tuning/preview", { ...settled, rows: 3, offset }, signal), [key, offset]);
  const forecast = useAnswer((signal) => api.ask("fine_tuning/jobs/estimate", settled, signal), [key]);
  return html`
    ${can("train") &&
    html`<section aria-labelledby="forecast"><h2 id="forecast">What it takes</h2><${Known} answer=${forecast}>${(found) => html`<${Forecast} found=${found} />`}<//></section>`}
    <section aria-labelledby="rows">
      <h2 id="rows">What it trains on</h2>
      <${Known} answer=${rows} said=${forecast.error}>${(preview) => html`<${Rows} preview=${preview} offset=${offset} turn=${setOffset} />`}<//>
    </section>
  `;
}

/** What is known of the form as it stands: nothing that was true of an earlier one. `said` was refused above already. */
function Known({ answer, said, children }) {
  const { value, error } = answer;
  if (error) return error.message === said?.message ? null : html`<${Problem} error=${error} retry=${answer.reload} />`;
  return value === null ? html`<p class="quiet" role="status">Loading …</p>` : children(value);
}

function sharedOptions(methods) {
  const [first, ...rest] = methods.map((method) => new Set(Object.keys(method.hyperparameters.properties)));
  return new Set([...first].filter((name) => rest.every((names) => names.has(name))));
}
