// Numbers, sizes and times as people read them.

const COUNT = new Intl.NumberFormat("en");
const MONEY = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const DATE = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const THIS_YEAR = new Intl.DateTimeFormat("en", { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** 1234567 as 1,234,567; "" for what is not there. */
export const count = (value) => (value === null || value === undefined ? "" : COUNT.format(value));

/** A measure with four digits: 0.0001234 as 1.234e-4. */
export function measure(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return count(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(3);
}

/** Bytes in the unit that suits them. */
export function bytes(value) {
  if (value === null || value === undefined) return "";
  let unit = 0;
  let rest = value;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? rest : rest.toFixed(1)} ${UNITS[unit]}`;
}

/** Seconds as 45 s, 3 min 20 s, 2 h 5 min or 3 d 4 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (seconds > 0 && whole === 0) return "under 1 s";
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** An amount of money: with cents, or two digits of less than a cent. */
export function money(amount, currency) {
  const shown = amount >= 0.01 || amount === 0 ? MONEY.format(amount) : String(Number(amount.toPrecision(2)));
  return `${shown} ${currency}`;
}

/** A moment, given in seconds since 1970; without the year in this year. */
export function moment(seconds) {
  if (!seconds) return "";
  const date = new Date(seconds * 1000);
  return (date.getFullYear() === new Date().getFullYear() ? THIS_YEAR : DATE).format(date);
}

/** Seconds since 1970, now. */
export const now = () => Date.now() / 1000;

/** train_rewards_margins as "rewards margins". */
export const words = (name) => name.replaceAll("_", " ");

/** A value of a setting as it is written in a request. */
export const literal = (value) => (typeof value === "string" ? value : JSON.stringify(value));
