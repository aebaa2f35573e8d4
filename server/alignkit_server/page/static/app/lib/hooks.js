// What components share: asking the server, and asking again.
import { createContext, useCallback, useContext, useEffect, useRef, useState } from "./ui.js";

/** {api, key, can(scope), notify(text)} of whoever is signed in. */
export const Session = createContext(null);
export const useSession = () => useContext(Session);

/**
 * What `ask(signal)` gives: {value, error, loading, reload}. Asked again when `inputs` change; the last good value
 * stays while a later question fails or is under way, so that a lost connection does not empty the page.
 */
export function useAnswer(ask, inputs) {
  const [state, setState] = useState({ value: null, error: null, loading: true });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setState((before) => ({ ...before, loading: true }));
    ask(stop.signal).then(
      (value) => !stop.signal.aborted && setState({ value, error: null, loading: false }),
      (error) => !stop.signal.aborted && setState((before) => ({ ...before, error, loading: false })),
    );
    return () => stop.abort();
  }, [...inputs, turn]);
  const reload = useCallback(() => setTurn((before) => before + 1), []);
  return { ...state, reload };
}

/** Call `work` now and every `seconds` while the tab is seen; never twice at once. */
export function useEvery(seconds, work, inputs) {
  const latest = useRef(work);
  latest.current = work;
  useEffect(() => {
    let timer;
    let busy = false;
    let ended = false;
    const turn = async () => {
      if (busy) return;
      busy = true;
      if (!document.hidden) await latest.current();
      busy = false;
      if (!ended) timer = setTimeout(turn, seconds * 1000);
    };
    const shown = () => {
      if (document.hidden) return;
      clearTimeout(timer);
      turn();
    };
    turn();
    document.addEventListener("visibilitychange", shown);
    return () => {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, inputs);
}

/** Whether the tab is seen. */
export function useSeen() {
  const [seen, setSeen] = useState(!document.hidden);
  useEffect(() => {
    const changed = () => setSeen(!document.hidden);
    document.addEventListener("visibilitychange", changed);
    return () => document.removeEventListener("visibilitychange", changed);
  }, []);
  return seen;
}

/** The value as it was when it last stood still for `milliseconds`. */
export function useSettled(value, milliseconds) {
  const [settled, setSettled] = useState(value);
  const text = JSON.stringify(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(JSON.parse(text)), milliseconds);
    return () => clearTimeout(timer);
  }, [text]);
  return settled;
}

/**
 * A value that stays in this browser, the same in every tab: [value, set]. `set` takes a value, or what makes one from
 * the present one, which another tab may have changed.
 */
export function useKept(name, initial) {
  const key = `alignkit.${name}`;
  const read = () => {
    try {
      return JSON.parse(localStorage.getItem(key)) ?? initial;
    } catch {
      return initial; // written by something else
    }
  };
  const [value, setValue] = useState(read);
  useEffect(() => {
    const changed = (event) => (event.key === key || event.key === null) && setValue(read());
    addEventListener("storage", changed);
    return () => removeEventListener("storage", changed);
  }, [key]);
  const set = useCallback(
    (next) => {
      const made = typeof next === "function" ? next(read()) : next;
      localStorage.setItem(key, JSON.stringify(made));
      setValue(made);
    },
    [key],
  );
  return [value, set];
}
