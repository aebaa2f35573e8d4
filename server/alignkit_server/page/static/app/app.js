// The frame around every page: who is signed in, where one can go, and what just happened.
import { Api } from "./lib/api.js";
import { Session, useKept, useSession } from "./lib/hooks.js";
import { link, useRoute } from "./lib/router.js";
import { forgetKey, keepKey, storedKey, watchKey } from "./lib/session.js";
import { html, useCallback, useEffect, useMemo, useState } from "./lib/ui.js";
import { PAGES, homeOf, placesFor } from "./pages/index.js";
import { Missing } from "./pages/missing.js";
import { SignIn } from "./pages/sign_in.js";

const NOTICE_SECONDS = 8;

/** The whole page. */
export function App() {
  const [token, setToken] = useState(storedKey);
  const [reason, setReason] = useState(null);
  useEffect(() => watchKey(setToken), []);
  const leave = useCallback((why = null) => {
    forgetKey();
    setReason(why);
    setToken(null);
  }, []);
  const enter = useCallback((key, everyTab) => {
    keepKey(key, everyTab);
    setReason(null);
    setToken(key);
  }, []);
  if (!token) return html`<${SignIn} reason=${reason} onEnter=${enter} />`;
  return html`<${SignedIn} key=${token} token=${token} onLeave=${leave} />`;
}

function SignedIn({ token, onLeave }) {
  const [key, setKey] = useState(null);
  const [problem, setProblem] = useState(null);
  const [notice, notify] = useNotice();
  const api = useMemo(() => new Api(token, (error) => onLeave(error.message)), [token]);
  const look = useCallback(() => {
    setProblem(null);
    api.get("key").then(setKey, (error) => error.status !== 401 && setProblem(error));
  }, [api]);
  useEffect(look, [look]);
  const session = useMemo(
    () => key && { api, key, notify, can: (scope) => key.scopes.includes(scope), refresh: look },
    [api, key, notify, look],
  );
  if (!session) {
    return html`<main class="narrow"><h1>alignkit</h1>${
      problem
        ? html`<div class="problem" role="alert"><p>${problem.message}</p><button onClick=${look}>Try again</button> <button onClick=${() => onLeave()}>Sign out</button></div>`
        : html`<p role="status">Signing in …</p>`
    }</main>`;
  }
  return html`
    <${Session.Provider} value=${session}>
      <${Frame} onLeave=${() => onLeave()} notice=${notice} />
    <//>
  `;
}

function Frame({ onLeave, notice }) {
  const session = useSession();
  const route = useRoute();
  const [name = homeOf(session), ...rest] = route.parts;
  const Page = PAGES[name] ?? Missing;
  // The address is the page's identity: another job is another page, a filter in the query is not.
  const identity = [name, ...rest].join("/");
  const skip = (event) => {
    event.preventDefault(); // the fragment belongs to the router
    document.querySelector("main h1")?.focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <header>
      <a class="brand" href="#/"><img src="page/icon.svg" alt="" width="24" height="24" /> alignkit</a>
      <nav aria-label="Pages">
        ${placesFor(session).map(
          ([place, label]) =>
            html`<a href=${link([place])} aria-current=${place === name ? "page" : undefined}>${label}</a>`,
        )}
        <a href="docs">API</a>
      </nav>
      <div class="row">
        <${Theme} />
        <span class="quiet" title=${session.key.redacted_value}>${session.key.project.name}</span>
        <button type="button" onClick=${onLeave}>Sign out</button>
      </div>
    </header>
    <main id="main"><${Page} key=${identity} parts=${rest} query=${route.query} /></main>
    <div class="notice ${notice?.kind ?? ""}" role="status" aria-live="polite">${notice?.text}</div>
  `;
}

/** Light, dark, or as the system has it. */
function Theme() {
  const [theme, setTheme] = useKept("theme", "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
  }, [theme]);
  return html`
    <select aria-label="Colours" value=${theme} onChange=${(event) => setTheme(event.target.value)}>
      <option value="auto">Auto</option>
      <option value="light">Light</option>
      <option value="dark">Dark</option>
    </select>
  `;
}

/** What just happened, for some seconds. */
function useNotice() {
  const [notice, setNotice] = useState(null);
  useEffect(() => {
    const timer = notice && setTimeout(() => setNotice(null), NOTICE_SECONDS * 1000);
    return () => clearTimeout(timer);
  }, [notice]);
  const notify = useCallback((text, kind = "good") => setNotice({ text, kind }), []);
  return [notice, notify];
}
