// Two models side by side; which answer is better becomes a row of preference data.
import { saveAs } from "../lib/api.js";
import { count } from "../lib/format.js";
import { useAnswer, useKept, useSession } from "../lib/hooks.js";
import { go, link } from "../lib/router.js";
import { html, useEffect, useRef, useState } from "../lib/ui.js";
import { Action, Field, Heading, Loaded } from "../parts/common.js";

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
  const { api, notify } = useSession();
  const chosen = { a: query.a ?? models[0]?.id ?? "", b: query.b ?? models.at(-1)?.id ?? "" };
  const [turns, setTurns] = useState([]);
  const [text, setText] = useState("");
  const [system, setSystem] = useState("");
  const [temperature, setTemperature] = useState("0.7");
  const [busy, setBusy] = useState(false);
  const [rows, setRows] = useKept("preferences", []);
  const [prompts, setPrompts] = useKept("prompts", []);
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
    setTurns([...turns, { asked, a: "", b: "", failed: {} }]);
    const change = (work) => setTurns((before) => before.map((turn, index) => (index === number ? work(turn) : turn)));
    const answer = async (side) => {
      const body = { model: chosen[side], messages: messagesOf(system, turns, side, asked), temperature: Number(temperature) || 0 };
      try {
        for await (const chunk of api.chat(body, stop.current.signal)) {
          const piece = chunk.choices?.[0]?.delta?.content ?? "";
          if (piece) change((turn) => ({ ...turn, [side]: turn[side] + piece }));
        }
      } catch (error) {
        if (error.name !== "AbortError") change((turn) => ({ ...turn, failed: { ...turn.failed, [side]: error.message } }));
      }
    };
    await Promise.all(SIDES.map(answer));
    setBusy(false);
  };
  const last = turns.at(-1);
  const judged = last && !busy && last.a && last.b && !Object.keys(last.failed).length;
  const prefer = (side) => {
    const other = side === "a" ? "b" : "a";
    const messages = messagesOf(system, turns.slice(0, -1), side, last.asked);
    setRows([
      ...rows,
      {
        input: { messages },
        preferred_output: [{ role: "assistant", content: last[side].trim() }],
        non_preferred_output: [{ role: "assistant", content: last[other].trim() }],
      },
    ]);
    notify("Kept as a row of preference data.");
  };
  return html`
    <div class="columns">
      ${SIDES.map((side) => html`<${Side} key=${side} side=${side} models=${models} model=${chosen[side]} turns=${turns} busy=${busy} pick=${(model) => pick(side, model)} />`)}
    </div>
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
      </div>
      <details>
        <summary>System prompt, temperature, saved prompts</summary>
        <div class="grid">
          <${Field} label="System prompt">${(field) => html`<textarea ...${field} value=${system} onInput=${(event) => setSystem(event.target.value)}></textarea>`}<//>
          <${Field} label="Temperature" hint="0 always gives the most likely answer">${(field) => html`<input ...${field} type="number" min="0" max="2" step="0.1" value=${temperature} onInput=${(event) => setTemperature(event.target.value)} />`}<//>
          <${Field} label="Saved prompts" hint="kept in this browser">
            ${(field) => html`
              <select ...${field} value="" onChange=${(event) => setText(event.target.value)}>
                <option value="">choose one to ask</option>
                ${prompts.map((prompt) => html`<option value=${prompt}>${prompt.slice(0, 60)}</option>`)}
              </select>
            `}
          <//>
        </div>
        <button type="button" disabled=${!text.trim() || prompts.includes(text.trim())} onClick=${() => setPrompts([...prompts, text.trim()])}>Save the message as a prompt</button>
      </details>
    </form>
    <${Preferences} rows=${rows} clear=${() => setRows([])} />
  `;
}

function Side({ side, models, model, turns, busy, pick }) {
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
            <li>${turn[side] || (turn.failed[side] ? "" : "…")}${turn.failed[side] && html`<span class="problem" role="alert">${turn.failed[side]}</span>`}</li>
          `,
        )}
      </ol>
    </section>
  `;
}

/** The rows that were made by preferring one answer: kept in this browser until they are a file. */
function Preferences({ rows, clear }) {
  const { api, can } = useSession();
  if (!rows.length) return null;
  const file = () => new File(rows.map((row) => `${JSON.stringify(row)}\n`), "preferences.jsonl", { type: "application/jsonl" });
  const upload = async () => {
    const { id } = await api.upload(file(), () => {});
    clear();
    go(link(["new"], { file: id }));
  };
  return html`
    <section aria-labelledby="preferences">
      <h2 id="preferences">Preferences</h2>
      <div class="row">
        <span>${count(rows.length)} ${rows.length === 1 ? "row" : "rows"}, kept in this browser</span>
        ${can("train") && html`<${Action} label="Upload and train on them" work=${upload} />`}
        <button type="button" onClick=${() => saveAs(file(), "preferences.jsonl")}>Download</button>
        <${Action} label="Discard" kind="danger" ask="Discard the rows?" work=${async () => clear()} />
      </div>
    </section>
  `;
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
