// Signing in with a key, which stays in this browser.
import { Api } from "../lib/api.js";
import { html, useState } from "../lib/ui.js";
import { Field } from "../parts/common.js";

/** Asks for a key, and tries it before it is kept. */
export function SignIn({ reason, onEnter }) {
  const [key, setKey] = useState("");
  const [everyTab, setEveryTab] = useState(true);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await new Api(key.trim()).get("key");
      onEnter(key.trim(), everyTab);
    } catch (refusal) {
      setError(refusal.message);
      setBusy(false);
    }
  };
  return html`
    <main class="narrow">
      <h1>alignkit</h1>
      <p>Alignment fine-tuning behind OpenAI's API. Sign in with a key of this service.</p>
      ${reason && html`<div class="problem" role="alert"><p>${reason}</p></div>`}
      <form onSubmit=${submit}>
        <${Field}
          label="Key"
          hint="The first start of the service prints one, and leaves it in the file first-key."
          error=${error}
        >
          ${(field) => html`
            <input ...${field} type="password" autocomplete="current-password" required spellcheck=${false}
              value=${key} onInput=${(event) => setKey(event.target.value)} />
          `}
        <//>
        <label class="check">
          <input type="checkbox" checked=${everyTab} onChange=${(event) => setEveryTab(event.target.checked)} />
          Stay signed in on this computer
        </label>
        <button class="primary" disabled=${busy}>${busy ? "Signing in …" : "Sign in"}</button>
      </form>
    </main>
  `;
}
