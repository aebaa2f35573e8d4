// Projects, their limits and their keys; for keys with the scope admin.
import { moment, words } from "../lib/format.js";
import { useAnswer, useSession } from "../lib/hooks.js";
import { link } from "../lib/router.js";
import { html, useState } from "../lib/ui.js";
import { Action, Code, Field, Heading, Loaded, Problem, Table } from "../parts/common.js";
import { Usage } from "./project.js";

const ROOT = "organization/projects";
const SCOPES = ["read", "train", "inference", "metrics", "admin"];
const DAY = 86_400;

/** All projects, or one. */
export const Admin = ({ parts: [id] }) => (id ? html`<${OneProject} id=${id} />` : html`<${Projects} />`);

function Projects() {
  const { api, notify } = useSession();
  const answer = useAnswer(() => api.all(ROOT), []);
  const [name, setName] = useState("");
  const create = async () => {
    await api.post(ROOT, { name });
    setName("");
    notify(`The project ${name} was created.`);
    answer.reload();
  };
  return html`
    <${Heading} title="Projects" />
    <form class="row" onSubmit=${(event) => event.preventDefault()}>
      <input aria-label="Name of a new project" placeholder="Name of a new project" value=${name} onInput=${(event) => setName(event.target.value)} />
      <${Action} label="Create the project" disabled=${!name} work=${create} />
    </form>
    <${Loaded} answer=${answer}>
      ${(projects) => html`
        <${Table} caption="Projects" head=${["Name", "Id", "Jobs queued", "Jobs running", "Created"]}>
          ${projects.map(
            (project) => html`
              <tr>
                <th scope="row"><a href=${link(["projects", project.id])}>${project.name}</a></th>
                <td class="name">${project.id}</td>
                <td>${project.usage.jobs_queued}</td>
                <td>${project.usage.jobs_running}</td>
                <td>${moment(project.created_at)}</td>
              </tr>
            `,
          )}
        <//>
      `}
    <//>
  `;
}

function OneProject({ id }) {
  const { api } = useSession();
  const path = `${ROOT}/${encodeURIComponent(id)}`;
  const answer = useAnswer(() => api.get(path), [path]);
  return html`
    <${Heading} title=${answer.value ? `Project ${answer.value.name}` : "Project"} />
    <p><a href="#/projects">All projects</a></p>
    <${Loaded} answer=${answer}>
      ${(project) => html`
        <${Usage} limits=${project.limits} usage=${project.usage} />
        <${Limits} path=${path} limits=${project.limits} changed=${answer.reload} />
      `}
    <//>
    <${Keys} path=${`${path}/api_keys`} />
  `;
}

function Limits({ path, limits, changed }) {
  const { api } = useSession();
  const [texts, setTexts] = useState({});
  const [error, setError] = useState(null);
  const save = async () => {
    const changes = Object.entries(texts).map(([name, text]) => [name, text.trim() === "" ? null : Number(text)]);
    try {
      await api.post(path, { limits: Object.fromEntries(changes) });
      setTexts({});
      setError(null);
      changed();
    } catch (refusal) {
      setError(refusal);
    }
  };
  return html`
    <details>
      <summary>Change the limits</summary>
      <p class="quiet">An empty field takes the service's own limit again.</p>
      <div class="grid">
        ${Object.entries(limits).map(
          ([name, limit]) => html`
            <${Field} key=${name} label=${words(name)}>
              ${(field) => html`<input ...${field} inputmode="numeric" value=${texts[name] ?? limit ?? ""} onInput=${(event) => setTexts({ ...texts, [name]: event.target.value })} />`}
            <//>
          `,
        )}
      </div>
      <${Problem} error=${error} />
      <${Action} label="Save the limits" disabled=${!Object.keys(texts).length} work=${save} />
    </details>
  `;
}

function Keys({ path }) {
  const { api } = useSession();
  const answer = useAnswer(() => api.all(path), [path]);
  const [made, setMade] = useState(null);
  const taken = (key) => {
    setMade(key);
    answer.reload();
  };
  return html`
    <section aria-labelledby="keys">
      <h2 id="keys">Keys</h2>
      ${made && html`<${Code} label="The new key, shown this once" text=${made.value} />`}
      <${NewKey} path=${path} taken=${taken} />
      <${Loaded} answer=${answer}>
        ${(keys) => html`
          <${Table} caption="Keys of the project" head=${["Name", "Key", "Scopes", "Last used", "Expires", ""]}>
            ${keys.map(
              (key) => html`
                <tr>
                  <th scope="row">${key.name || "–"}</th>
                  <td>${key.redacted_value}</td>
                  <td>${key.scopes.join(", ")}</td>
                  <td>${moment(key.last_used_at) || "never"}</td>
                  <td>${moment(key.expires_at) || "never"}</td>
                  <td>
                    <div class="row">
                      <${Action} label="Rotate" ask="Make a new key in place of ${key.name || key.redacted_value}? The old one ends in a day." work=${async () => taken(await api.post(`${path}/${key.id}/rotate`, { grace_seconds: DAY }))} />
                      <${Action} label="Revoke" kind="danger" ask="Revoke ${key.name || key.redacted_value}? It opens nothing from then on." done="The key was revoked." work=${async () => (await api.delete(`${path}/${key.id}`), answer.reload())} />
                    </div>
                  </td>
                </tr>
              `,
            )}
          <//>
        `}
      <//>
    </section>
  `;
}

function NewKey({ path, taken }) {
  const { api } = useSession();
  const [name, setName] = useState("");
  const [days, setDays] = useState("90");
  const [scopes, setScopes] = useState(["read", "train", "inference"]);
  const create = async () => {
    const expires = Number(days) > 0 ? { expires_in_seconds: Math.round(Number(days) * DAY) } : {};
    taken(await api.post(path, { name, scopes, ...expires }));
    setName("");
  };
  const turn = (scope, on) => setScopes(SCOPES.filter((one) => (one === scope ? on : scopes.includes(one))));
  return html`
    <fieldset>
      <legend>New key</legend>
      <div class="grid">
        <${Field} label="Name">${(field) => html`<input ...${field} value=${name} onInput=${(event) => setName(event.target.value)} />`}<//>
        <${Field} label="Days until it expires" hint="empty: never">${(field) => html`<input ...${field} inputmode="numeric" value=${days} onInput=${(event) => setDays(event.target.value)} />`}<//>
      </div>
      <div class="row" role="group" aria-label="Scopes">
        ${SCOPES.map((scope) => html`<label><input type="checkbox" checked=${scopes.includes(scope)} onChange=${(event) => turn(scope, event.target.checked)} /> ${scope}</label>`)}
      </div>
      <p><${Action} label="Create the key" disabled=${!name || !scopes.length} work=${create} /></p>
    </fieldset>
  `;
}
