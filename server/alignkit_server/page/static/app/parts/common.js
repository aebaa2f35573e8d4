// Small things that every page is made of.
import { html, useEffect, useId, useRef, useState } from "../lib/ui.js";
import { useSession } from "../lib/hooks.js";

const MARKS = {
  validating_files: "…",
  queued: "◷",
  running: "▶",
  paused: "❚❚",
  succeeded: "✓",
  failed: "✕",
  cancelled: "⊘",
};

/** A page's heading, which takes the focus when the page opens, so that a screen reader begins there. */
export function Heading({ children, title }) {
  const heading = useRef();
  useEffect(() => {
    document.title = `${title} · alignkit`;
  }, [title]);
  useEffect(() => heading.current.focus({ preventScroll: true }), []);
  return html`<h1 tabindex="-1" ref=${heading}>${children ?? title}</h1>`;
}

/** A job's status: a word and a mark, never a colour alone. */
export const Status = ({ status }) => html`
  <span class="status status-${status}"><span aria-hidden="true">${MARKS[status] ?? "?"}</span>${" "}${status.replaceAll("_", " ")}</span>
`;

/** An error, in the server's own sentences, one a line. */
export function Problem({ error, retry }) {
  if (!error) return null;
  const [first, ...more] = error.message.split("\n");
  return html`
    <div class="problem" role="alert">
      <p>${error.param && html`<code>${error.param}</code>${" "}`}${first}</p>
      ${more.length > 0 && html`<ul>${more.map((line) => html`<li>${line}</li>`)}</ul>`}
      ${retry && html`<button type="button" onClick=${retry}>Try again</button>`}
    </div>
  `;
}

/** What an answer holds once it is there, with what is to be seen before and when it fails. */
export function Loaded({ answer, children }) {
  return html`
    <${Problem} error=${answer.error} retry=${answer.reload} />
    ${answer.value !== null ? children(answer.value) : answer.loading && html`<p class="quiet" role="status">Loading …</p>`}
  `;
}

/** A button that does something at the server: shows that it is under way, and what came of it. */
export function Action({ label, done, work, kind = "", disabled = false, ask }) {
  const { notify } = useSession();
  const [busy, setBusy] = useState(false);
  const [asking, setAsking] = useState(false);
  const run = async () => {
    setBusy(true);
    try {
      await work();
      if (done) notify(done);
    } catch (error) {
      notify(error.message, "problem");
    } finally {
      setBusy(false);
    }
  };
  return html`
    <button type="button" class=${kind} disabled=${busy || disabled} onClick=${() => (ask ? setAsking(true) : run())}>
      ${busy ? `${label} …` : label}
    </button>
    ${asking &&
    html`<${Question} text=${ask} yes=${label} onYes=${run} onClose=${() => setAsking(false)} />`}
  `;
}

/** A question before something that cannot be taken back. */
function Question({ text, yes, onYes, onClose }) {
  const dialog = useRef();
  const id = useId();
  useEffect(() => dialog.current.showModal(), []);
  const confirm = () => {
    dialog.current.close();
    onYes();
  };
  return html`
    <dialog ref=${dialog} aria-labelledby=${id} onClose=${onClose}>
      <p id=${id}>${text}</p>
      <div class="row">
        <button type="button" onClick=${() => dialog.current.close()}>Keep</button>
        <button type="button" class="danger" onClick=${confirm}>${yes}</button>
      </div>
    </dialog>
  `;
}

/** Text to copy, such as a script. */
export function Code({ text, label }) {
  const { notify } = useSession();
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      notify("Copied.");
    } catch {
      notify("The browser does not allow copying here: select the text.", "problem");
    }
  };
  return html`
    <figure class="code">
      <figcaption>${label} <button type="button" onClick=${copy}>Copy<span class="unseen"> ${label}</span></button></figcaption>
      <pre tabindex="0" aria-label=${label}>${text}</pre>
    </figure>
  `;
}

/** A labelled input; `hint` says what is expected. */
export function Field({ label, hint, error, children }) {
  const id = useId();
  const described = hint || error ? `${id}-hint` : undefined;
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      ${children({ id, "aria-describedby": described, "aria-invalid": error ? "true" : undefined })}
      ${described && html`<small id=${described} class=${error ? "wrong" : ""}>${error || hint}</small>`}
    </div>
  `;
}

/** A list of (term, value) pairs; those without a value are left out. */
export const Facts = ({ facts }) => html`
  <dl class="facts">
    ${facts
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}
  </dl>
`;

/**
 * A table that scrolls by itself where the window is narrow. `caption` is for screen readers; "" heads no column;
 * the heads of a `fitted` one wrap.
 */
export const Table = ({ caption, head, kind = "", children }) => html`
  <div class="scroll" tabindex="0" role="region" aria-label=${caption}>
    <table class=${kind}>
      <caption class="unseen">${caption}</caption>
      <thead><tr>${head.map((name) => (name ? html`<th scope="col">${name}</th>` : html`<td></td>`))}</tr></thead>
      <tbody>${children}</tbody>
    </table>
  </div>
`;
