// Reward against distance from the reference: which run bought how much for what.
import { measure } from "../lib/format.js";
import { html } from "../lib/ui.js";

const REWARDS = ["valid_rewards_margins", "train_rewards_margins"];
const DISTANCES = ["valid_answers_kl", "valid_kl", "train_kl"];
const [WIDTH, HEIGHT, EDGE] = [420, 220, 44];

/**
 * A point a run, at its last values, and a line through those that no other run beats: none has a larger margin at
 * the same KL or less. Nothing where fewer than two runs have both measures.
 */
export function Frontier({ runs }) {
  const found = runs
    .map((run) => ({ name: run.name, x: lastOf(run.series, DISTANCES), y: lastOf(run.series, REWARDS) }))
    .filter(({ x, y }) => x !== null && y !== null);
  if (found.length < 2) return null;
  const best = new Set(unbeaten(found));
  const [xs, ys] = [found.map((point) => point.x), found.map((point) => point.y)];
  const across = scale(xs, EDGE + 20, WIDTH - EDGE);
  const up = scale(ys, HEIGHT - EDGE - 20, EDGE);
  const text = found
    .map((point) => `${point.name}: margin ${measure(point.y)} at KL ${measure(point.x)}${best.has(point) ? ", on the frontier" : ""}`)
    .join("; ");
  return html`
    <section aria-labelledby="frontier">
      <h2 id="frontier">Reward against KL</h2>
      <figure class="chart frontier">
        <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label=${text}>
          <path class="axis" d="M${EDGE} ${EDGE / 2}V${HEIGHT - EDGE}H${WIDTH - EDGE / 2}" />
          <text x=${WIDTH / 2} y=${HEIGHT - 8} text-anchor="middle">KL from the reference</text>
          <text x="8" y="14">reward margin</text>
          ${ends(xs).map((value) => html`<text class="tick" x=${across(value)} y=${HEIGHT - EDGE + 15} text-anchor="middle">${measure(value)}</text>`)}
          ${ends(ys).map((value) => html`<text class="tick" x=${EDGE - 5} y=${up(value) + 4} text-anchor="end">${measure(value)}</text>`)}
          <polyline class="best" points=${[...best].map(({ x, y }) => `${across(x)},${up(y)}`).join(" ")} />
          ${found.map((point, number) => html`<${Point} name=${point.name} x=${across(point.x)} y=${up(point.y)} number=${number} on=${best.has(point)} />`)}
        </svg>
        <figcaption class="quiet">${text}</figcaption>
      </figure>
    </section>
  `;
}

function Point({ name, x, y, number, on }) {
  const left = x > WIDTH / 2;
  return html`
    <circle class="point-${number % 6}" cx=${x} cy=${y} r=${on ? 6 : 4} />
    <text x=${x + (left ? -10 : 10)} y=${y + 4} text-anchor=${left ? "end" : "start"}>${name}</text>
  `;
}

/** The points that no other beats, from the nearest to the reference on. */
function unbeaten(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  return sorted.filter((point, place) => sorted.slice(0, place).every((before) => before.y < point.y));
}

function lastOf(series, names) {
  for (const name of names) {
    const value = series[name]?.values.at(-1);
    if (typeof value === "number") return value;
  }
  return null;
}

/** The least and the largest value, once if they are the same. */
const ends = (values) => [...new Set([Math.min(...values), Math.max(...values)])];

function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
}
