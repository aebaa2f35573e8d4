// Where the key is kept: in this browser only, for all tabs or for this one.

const NAME = "alignkit.key";

/** The key that was signed in with, or null. */
export function storedKey() {
  return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME);
}

/** Keep the key: for every tab until it is signed out, or until this tab is closed. */
export function keepKey(key, everyTab) {
  forgetKey();
  (everyTab ? localStorage : sessionStorage).setItem(NAME, key);
}

/** Forget the key, in every tab. */
export function forgetKey() {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
}

/** Call `changed` when another tab signs in or out; returns what ends that. */
export function watchKey(changed) {
  const listener = (event) => {
    if (event.key === NAME || event.key === null) changed(storedKey());
  };
  addEventListener("storage", listener);
  return () => removeEventListener("storage", listener);
}
