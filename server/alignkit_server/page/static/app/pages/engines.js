// The engines of the server that answers; for keys with the scope admin.
import { useEvery, useSession } from "../lib/hooks.js";
import { html, useState } from "../lib/ui.js";
import { Heading, Problem, Table } from "../parts/common.js";

const SECONDS = 5;
const MEANINGS = {
  stopped: "starts at the next request",
  starting: "requests wait for it",
  ready: "",
  sleeping: "its weights wait in the server's memory; the next request wakes it",
  failed: "the next request starts it again",
  external: "run elsewhere; the service neither starts nor stops it",
};

/** The state of every engine that was asked for, kept current. */
export function Engines() {
  const { api } = useSession();
  const [engines, setEngines] = useState(null);
  const [error, setError] = useState(null);
  const look = async () => {
    try {
      setEngines((await api.get("organization/engines")).data);
      setError(null);
    } catch (refusal) {
      setError(refusal);
    }
  };
  useEvery(SECONDS, look, [api]);
  return html`
    <${Heading} title="Engines" />
    <p class="quiet">The vLLM processes of this server, which answer chats. Each starts at the first request for its model.</p>
    <${Problem} error=${error} />
    ${engines === null
      ? !error && html`<p class="quiet" role="status">Loading …</p>`
      : engines.length === 0
        ? html`<p>No engine was needed since the server started.</p>`
        : html`<${Table} caption="Engines" head=${["Model", "State", "In use by", "Note"]}>
            ${engines.map((engine) => html`<${Row} key=${engine.id} engine=${engine} />`)}
          <//>`}
  `;
}

const Row = ({ engine }) => html`
  <tr>
    <th scope="row" class="name">${engine.id}</th>
    <td><span class="status ${{ ready: "good", failed: "bad" }[engine.status] ?? ""}">${engine.status}</span></td>
    <td>${engine.in_use}</td>
    <td class="name">${engine.error ?? MEANINGS[engine.status]}</td>
  </tr>
`;
