// The one place that knows which view library the page uses.
import htm from "../../vendor/htm.mjs";
import { createElement } from "../../vendor/preact.mjs";

export const html = htm.bind(createElement);
export { createContext, render } from "../../vendor/preact.mjs";
export {
  useCallback,
  useContext,
  useEffect,
  useId,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "../../vendor/hooks.mjs";
