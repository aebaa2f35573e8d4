// Reward against distance from the reference: which run bought how much for what.
import { measure } from "../lib/format.js";
import { html } from "../lib/ui.js";

const REWARDS = ["valid_rewards_margins", "train_rewards_margins"];
const DISTANCES = ["valid_answers_kl", "valid_kl", "train_kl"];
const [WIDTH, HEIGHT, EDGE] = [420, 220, 44];

/** A point a run, at its last values; nothing where fewer than two runs have both measures. */
export function Frontier({ runs }) {
  const points = runs
    .map((run) => ({ name: run.name, x: lastOf(run.series, DISTANCES), y: lastOf(run.series, REWARDS) }))
    .filter(({ x, y }) => x !== null && y !== null);
  if (points.length < 2) return null;
  const across = scale(points.map((point) => point.x), EDGE + 20, WIDTH - EDGE);
  const up = scale(points.map((point) => point.y), HEIGHT - EDGE - 20, EDGE);
  const text = points.map(({ name, x, y }) => `${name}: margin ${measure(y)} at KL ${measure(x)}`).join("; ");
  return html`
    <section aria-labelledby="frontier">
      <h2 id="frontier">Reward against KL</h2>
      <figure class="chart frontier">
        <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label=${text}>
          <path class="axis" d="M${EDGE} ${EDGE / 2}V${HEIGHT - EDGE}H${WIDTH - EDGE / 2}" />
          <text x=${WIDTH / 2} y=${HEIGHT - 8} text-anchor="middle">KL from the reference</text>
          <text x="8" y="14">reward margin</text>
          ${points.map(
            ({ name, x, y }, number) => html`
              <circle class="point-${number % 6}" cx=${across(x)} cy=${up(y)} r="6" />
              <text x=${across(x) + (across(x) > WIDTH / 2 ? -10 : 10)} y=${up(y) + 4} text-anchor=${across(x) > WIDTH / 2 ? "end" : "start"}>${name}</text>
            `,
          )}
        </svg>
        <figcaption class="quiet">${text}</figcaption>
      </figure>
    </section>
  `;
}

function lastOf(series, names) {
  for (const name of names) {
    const value = series[name]?.values.at(-1);
    if (typeof value === "number") return value;
  }
  return null;
}

function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
}
