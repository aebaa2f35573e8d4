// What this key and its project may do, and what they use.
import { bytes, count, duration, moment, words } from "../lib/format.js";
import { useSession } from "../lib/hooks.js";
import { html, useEffect } from "../lib/ui.js";
import { Facts, Heading, Table } from "../parts/common.js";

/** The signed-in key, and the limits and usage of its project. */
export function Project() {
  const { key, refresh } = useSession();
  useEffect(refresh, []);
  return html`
    <${Heading} title="Project ${key.project.name}" />
    <${Facts} facts=${[
      ["Project", key.project.id],
      ["Key", `${key.name || "without a name"} (${key.redacted_value})`],
      ["It may", key.scopes.join(", ")],
      ["Created", moment(key.created_at)],
      ["Expires", key.expires_at ? moment(key.expires_at) : "never"],
    ]} />
    <${Usage} limits=${key.limits} usage=${key.usage} />
  `;
}

/** Limits beside what is used of them. */
export function Usage({ limits, usage }) {
  return html`
    <section aria-labelledby="usage">
      <h2 id="usage">Limits and usage</h2>
      <${Table} caption="Limits and usage of the project" head=${["", "Used", "Limit"]}>
        ${Object.entries(limits).map(
          ([name, limit]) => html`
            <tr>
              <th scope="row">${words(name)}</th>
              <td>${name in usage ? amount(name, usage[name]) : "–"}${limit > 0 && name in usage && html`${" "}<meter min="0" max=${limit} value=${usage[name]} aria-label="${words(name)}, share of the limit"></meter>`}</td>
              <td>${limit === null ? "none" : amount(name, limit)}</td>
            </tr>
          `,
        )}
      <//>
    </section>
  `;
}

function amount(name, value) {
  if (name.endsWith("_bytes")) return bytes(value);
  if (name.endsWith("_seconds")) return duration(value);
  return count(value);
}
