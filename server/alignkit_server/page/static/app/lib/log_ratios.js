// How much likelier one model finds each token of an answer than another: log p(token | policy) - log p(token | reference).

const PART = "\ufffd"; // for a token that is part of a character, which decodes to nothing
const SCORING_TIMEOUT = 600_000; // an engine may have to start first

/**
 * Each token of an answer with both models' log-probabilities, in nats.
 * @param {import("./api.js").Api} api
 * @param {{policy: string, reference: string}} models
 * @param {{prompt: number[], answer: number[], full: boolean}} ids token ids, as the engine streamed them; `full` if
 *   they fill the model's context, so that the last one cannot be scored, since a request asks for one more
 * @returns {Promise<{text: string, policy: number, reference: number, ratio: number}[]>}
 */
export async function logRatios(api, models, { prompt, answer, full }, signal) {
  const ids = { prompt, answer: full ? answer.slice(0, -1) : answer };
  const [ours, theirs] = await Promise.all(
    [models.policy, models.reference].map((model) => scores(api, model, ids, signal)),
  );
  if (ours.some((one, place) => one.text !== theirs[place].text)) {
    throw new Error(`${models.policy} and ${models.reference} have no common vocabulary, so their tokens cannot be compared.`);
  }
  return ours.map(({ text, logprob }, place) => {
    const reference = theirs[place].logprob;
    return { text, policy: logprob, reference, ratio: logprob - reference };
  });
}

/** The step of a colour: 0 for hardly any difference, to 3 either way. */
export function strength(ratio) {
  const size = Math.abs(ratio);
  return Math.sign(ratio) * (size < 0.1 ? 0 : size < 0.5 ? 1 : size < 1.5 ? 2 : 3);
}

async function scores(api, model, { prompt, answer }, signal) {
  const request = { model, prompt: [...prompt, ...answer], max_tokens: 1, temperature: 0, prompt_logprobs: 0 };
  const { choices } = await api.post("completions", request, { signal, timeout: SCORING_TIMEOUT });
  const entries = (choices[0].prompt_logprobs ?? []).slice(prompt.length);
  if (entries.length !== answer.length) throw new Error(`The engine of ${model} gives no log-probabilities.`);
  return entries.map((entry, place) => {
    const { logprob, decoded_token: text } = entry[answer[place]];
    return { text: text === "" ? PART : (text ?? `#${answer[place]}`), logprob };
  });
}
