// Which metrics share a chart, and in which order charts come.

const FIRST = ["loss", "rewards_margins", "rewards_accuracies", "logps", "kl", "entropy", "rewards_ece", "mean_token_accuracy"];
const SIDES = /_(chosen|rejected|samples|desirable|undesirable)$/;
const HIDDEN = new Set(["epoch", "num_tokens", "num_input_tokens_seen"]);

/**
 * Charts of a job's series: training and validation of one measure together, and both answers of a pair.
 * @param {Record<string, {steps: number[], values: (number | null)[]}>} series
 * @returns {{title: string, lines: object[]}[]}
 */
export function chartsOf(series) {
  const charts = new Map();
  for (const [name, points] of Object.entries(series)) {
    if (HIDDEN.has(name.replace(/^(train|valid)_/, ""))) continue;
    const title = measureOf(name);
    charts.set(title, [...(charts.get(title) ?? []), { name: name.replaceAll("_", " "), ...points }]);
  }
  return [...charts]
    .sort(([a], [b]) => rank(a) - rank(b) || a.localeCompare(b))
    .map(([title, lines]) => ({ title: title.replaceAll("_", " "), lines }));
}

/** A series with one more point; a step that is reported again has the later value. */
export function withPoint(series, report) {
  const { step } = report;
  if (!Number.isInteger(step)) return series;
  const next = { ...series };
  for (const [name, value] of Object.entries(report)) {
    if (["step", "total_steps", "seconds_remaining"].includes(name)) continue;
    if (value !== null && typeof value !== "number") continue;
    const { steps, values } = next[name] ?? { steps: [], values: [] };
    const keep = steps.findIndex((known) => known >= step); // after a resume a run makes some steps again
    const end = keep < 0 ? steps.length : keep;
    next[name] = { steps: [...steps.slice(0, end), step], values: [...values.slice(0, end), value] };
  }
  return next;
}

function measureOf(name) {
  return name.replace(/^(train|full_valid|valid)_/, "").replace(SIDES, "");
}

function rank(title) {
  const place = FIRST.indexOf(title);
  return place < 0 ? (title.startsWith("answers_") ? FIRST.length + 1 : FIRST.length) : place;
}
