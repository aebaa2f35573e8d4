// An answer whose tokens are coloured by how much likelier one model finds them than another.
import { measure } from "../lib/format.js";
import { useAnswer, useSession } from "../lib/hooks.js";
import { logRatios, strength } from "../lib/log_ratios.js";
import { html } from "../lib/ui.js";
import { Problem } from "./common.js";

const CLASSES = { "-3": "less-3", "-2": "less-2", "-1": "less-1", 0: "", 1: "more-1", 2: "more-2", 3: "more-3" };
const signed = (value) => (value > 0 ? `+${measure(value)}` : measure(value));

/** The answer as `text` until its tokens are scored by both models. */
export function ColouredAnswer({ text, ids, models }) {
  const { api } = useSession();
  const { value, error, reload } = useAnswer(
    (signal) => logRatios(api, models, ids, signal),
    [models.policy, models.reference, ids],
  );
  if (error) return html`${text}<${Problem} error=${error} retry=${reload} />`;
  if (!value) return html`${text}${" "}<small role="status">scoring the tokens …</small>`;
  const total = value.reduce((sum, token) => sum + token.ratio, 0);
  return html`
    <span class="tokens">${value.map((token) => html`<${Token} token=${token} />`)}</span>
    <details>
      <summary>log-ratio ${signed(total)} over ${value.length} ${value.length === 1 ? "token" : "tokens"}${ids.full && ", without the last one, which fills the context"}</summary>
      <table class="small">
        <thead><tr>${["Token", models.policy, models.reference, "Log-ratio"].map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
        <tbody>${value.map((token) => html`<${Row} token=${token} />`)}</tbody>
      </table>
    </details>
  `;
}

/** What the colours of `ColouredAnswer` mean. */
export const Legend = ({ models }) => html`
  <p class="quiet">
    ${models.policy} against ${models.reference}, token by token:${" "}
    <span class="more-2">likelier</span>, <span class="less-2">less likely</span>.
  </p>
`;

const Token = ({ token }) => html`
  <span class=${CLASSES[strength(token.ratio)]} title="log-ratio ${signed(token.ratio)}">${token.text}</span>
`;

/** A token's text; signs for one that is only white space. */
const visible = (text) => (text.trim() ? text : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(/\s/g, "␣"));

const Row = ({ token }) => html`
  <tr><th scope="row"><code>${visible(token.text)}</code></th><td>${measure(token.policy)}</td><td>${measure(token.reference)}</td><td>${signed(token.ratio)}</td></tr>
`;
