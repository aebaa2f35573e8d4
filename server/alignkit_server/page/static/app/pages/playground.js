// Two models side by side; which answer is better becomes a row of preference data.
import { useAnswer, useKept, useSession } from "../lib/hooks.js";
import { go, link } from "../lib/router.js";
import { html, useEffect, useRef, useState } from "../lib/ui.js";
import { Field, Heading, Loaded } from "../parts/common.js";
import { ColouredAnswer, Legend } from "../parts/log_ratios.js";
import { Preferences, preference } from "../parts/preferences.js";

const SIDES = ["a", "b"];
const NAMES = { a: "Left", b: "Right" };

/** The playground; the models are in the address. */
export function Playground({ query }) {
  const { api } = useSession();
  const answer = useAnswer(() => api.get("models"), []);
  return html`
    <${Heading} title="Playground" />
    <${Loaded} answer=${answer}>${(models) => html`<${Chats} models=${models.data} query=${query} />`}<//>
  `;
}

function Chats({ models, query }) {
  const { api, key, notify } = useSession();
  const chosen = { a: query.a ?? models[0]?.id ?? "", b: query.b ?? models.at(-1)?.id ?? "" };
  const [turns, setTurns] = useState([]);
  const [text, setText] = useState("");
  const [options, setOptions] = useState({ system: "", temperature: "0.7" });
  const [busy, setBusy] = useState(false);
  const [coloured, setColoured] = useKept("coloured", false);
  // Of this project alone: another's key may be used in the same browser.
  const [rows, setRows] = useKept(`preferences.${key.project.id}`, []);
  const stop = useRef(null);
  useEffect(() => () => stop.current?.abort(), []);

  const pick = (side, model) => {
    setTurns([]); // an answer of another model is no history of this one
    go(link(["playground"], { ...chosen, [side]: model }), { replace: true });
  };
  const ask = async () => {
    const asked = text.trim();
    stop.current = new AbortController();
    setBusy(true);
    setText("");
    const number = turns.length;
    setTurns([...turns, { asked, a: "", b: "", failed: {}, ids: {} }]);
    const change = (work) => setTurns((before) => before.map((turn, index) => (index === number ? work(turn) : turn)));
    const request = (side) => ({
      model: chosen[side],
      messages: messagesOf(options.system, turns, side, asked),
      temperature: Number(options.temperature) || 0,
      return_token_ids: true,
    });
    await Promise.all(SIDES.map((side) => answer(api, request(side), side, change, stop.current.signal)));
    setBusy(false);
  };
  const last = turns.at(-1);
  const judged = last && !busy && last.a && last.b && !Object.keys(last.failed).length;
  const prefer = (side) => {
    const messages = messagesOf(options.system, turns.slice(0, -1), side, last.asked);
    try {
      setRows((before) => [...before, preference(messages, last[side], last[side === "a" ? "b" : "a"])]);
      notify("Kept as a row of preference data.");
    } catch {
      notify("The browser keeps no more rows: upload or download those that it has.", "problem");
    }
  };
  const scored = coloured ? { policy: chosen.b, reference: chosen.a } : null;
  return html`
    <div class="columns">
      ${SIDES.map((side) => html`<${Side} key=${side} side=${side} models=${models} model=${chosen[side]} turns=${turns} busy=${busy} scored=${scored} pick=${(model) => pick(side, model)} />`)}
    </div>
    ${scored && turns.length > 0 && html`<${Legend} models=${scored} />`}
    <form onSubmit=${(event) => (event.preventDefault(), text.trim() && !busy && ask())}>
      <${Field} label="Message">
        ${(field) => html`
          <textarea ...${field} value=${text} onInput=${(event) => setText(event.target.value)}
            onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form.requestSubmit()}></textarea>
        `}
      <//>
      <div class="row">
        ${busy
          ? html`<button type="button" onClick=${() => stop.current.abort()}>Stop</button>`
          : html`<button class="primary" disabled=${!text.trim()}>Ask both</button>`}
        <button type="button" disabled=${!judged} onClick=${() => prefer("a")}>Left is better</button>
        <button type="button" disabled=${!judged} onClick=${() => prefer("b")}>Right is better</button>
        <button type="button" disabled=${busy || !turns.length} onClick=${() => setTurns([])}>Start over</button>
        <label><input type="checkbox" checked=${coloured} onChange=${(event) => setColoured(event.target.checked)} /> Colour tokens by log-ratio</label>
      </div>
      <${Options} options=${options} set=${setOptions} text=${text} setText=${setText} />
    </form>
    <${Preferences} rows=${rows} clear=${() => setRows([])} />
  `;
}

/** Ask one side, and hand on its answer as it comes; its token ids once it is whole. */
async function answer(api, request, side, change, signal) {
  const ids = { prompt: [], answer: [], full: false };
  try {
    for await (const chunk of api.chat(request, signal)) {
      const choice = chunk.choices?.[0];
      ids.prompt.push(...(chunk.prompt_token_ids ?? []));
      ids.answer.push(...(choice?.token_ids ?? []));
      ids.full ||= choice?.finish_reason === "length"; // nothing else bounds an answer here
      const piece = choice?.delta?.content ?? "";
      if (piece) change((turn) => ({ ...turn, [side]: turn[side] + piece }));
    }
  } catch (error) {
    if (error.name !== "AbortError") change((turn) => ({ ...turn, failed: { ...turn.failed, [side]: error.message } }));
  }
  if (ids.prompt.length && ids.answer.length) change((turn) => ({ ...turn, ids: { ...turn.ids, [side]: ids } }));
}

function Options({ options, set, text, setText }) {
  const { key } = useSession();
  const [prompts, setPrompts] = useKept(`prompts.${key.project.id}`, []);
  const change = (name) => (event) => set({ ...options, [name]: event.target.value });
  const asked = text.trim();
  return html`
    <details>
      <summary>System prompt, temperature, saved prompts</summary>
      <div class="grid">
        <${Field} label="System prompt">${(field) => html`<textarea ...${field} value=${options.system} onInput=${change("system")}></textarea>`}<//>
        <${Field} label="Temperature" hint="0 always gives the most likely answer">${(field) => html`<input ...${field} type="number" min="0" max="2" step="0.1" value=${options.temperature} onInput=${change("temperature")} />`}<//>
        <${Field} label="Saved prompts" hint="kept in this browser">
          ${(field) => html`
            <select ...${field} value=${prompts.includes(asked) ? asked : ""} onChange=${(event) => setText(event.target.value)}>
              <option value="">choose one to ask</option>
              ${prompts.map((prompt) => html`<option value=${prompt}>${prompt.slice(0, 60)}</option>`)}
            </select>
          `}
        <//>
      </div>
      <div class="row">
        <button type="button" disabled=${!asked || prompts.includes(asked)} onClick=${() => setPrompts((before) => [...before, asked])}>Save the message as a prompt</button>
        <button type="button" disabled=${!prompts.includes(asked)} onClick=${() => setPrompts((before) => before.filter((one) => one !== asked))}>Forget this prompt</button>
      </div>
    </details>
  `;
}

function Side({ side, models, model, turns, busy, scored, pick }) {
  return html`
    <section class="chat" aria-label=${NAMES[side]}>
      <label>${NAMES[side]}${" "}
        <select value=${model} onChange=${(event) => pick(event.target.value)}>
          ${!models.some((one) => one.id === model) && html`<option value=${model}>${model}</option>`}
          ${models.map((one) => html`<option value=${one.id}>${one.id}</option>`)}
        </select>
      </label>
      <ol tabindex="0" aria-label="Conversation, ${NAMES[side].toLowerCase()}" aria-live=${busy ? "off" : "polite"}>
        ${turns.map(
          (turn) => html`
            <li class="asked">${turn.asked}</li>
            <li><${Answer} turn=${turn} side=${side} scored=${scored} /></li>
          `,
        )}
      </ol>
    </section>
  `;
}

function Answer({ turn, side, scored }) {
  const [text, failure, ids] = [turn[side], turn.failed[side], turn.ids[side]];
  if (scored && ids && !failure) return html`<${ColouredAnswer} text=${text} ids=${ids} models=${scored} />`;
  return html`${text || (failure ? "" : "…")}${failure && html`<span class="problem" role="alert">${failure}</span>`}`;
}

/** The conversation as one side had it, with what is asked now. */
function messagesOf(system, turns, side, asked) {
  return [
    ...(system.trim() ? [{ role: "system", content: system.trim() }] : []),
    ...turns.flatMap((turn) => [
      { role: "user", content: turn.asked },
      { role: "assistant", content: turn[side].trim() },
    ]),
    { role: "user", content: asked },
  ];
}
