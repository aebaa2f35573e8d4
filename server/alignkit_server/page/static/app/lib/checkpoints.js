// Which of a checkpoint's many metrics show at once.

const HEADLINES = ["loss", "rewards_accuracies", "rewards_margins", "rewards_ece", "mean_token_accuracy", "kl"];
const SHOWN = 4;

/**
 * The metrics that some checkpoint has: those that tell most of it, and all others. `best` chooses the job's result.
 * @param {{metrics: Record<string, unknown>}[]} checkpoints
 * @param {string | null | undefined} best
 * @returns {{head: string[], rest: string[]}}
 */
export function metricsOf(checkpoints, best) {
  const all = new Set();
  for (const { metrics } of checkpoints) {
    for (const [name, value] of Object.entries(metrics)) if (name !== "step" && typeof value === "number") all.add(name);
  }
  const held = HEADLINES.map((name) => (all.has(`valid_${name}`) ? `valid_${name}` : `train_${name}`));
  const head = [...new Set([held[0], best, ...held])].filter((name) => all.has(name)).slice(0, SHOWN);
  return { head, rest: [...all].filter((name) => !head.includes(name)).sort() };
}
