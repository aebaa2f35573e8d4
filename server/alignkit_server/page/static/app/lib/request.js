// From a form to a job's request, and from a request to the programs that make the same job.
import { settingsOf } from "./jobs.js";

/**
 * What a hyperparameter of a method's JSON Schema takes.
 * @returns {{kind: "choice" | "flag" | "text", choices?: string[], hint: string, initial: string}}
 */
export function optionOf(schema) {
  const forms = (schema.anyOf ?? [schema]).filter((form) => form.type !== "null");
  const words = forms.flatMap((form) => form.enum ?? (form.const === undefined ? [] : [form.const])).map(String);
  const numbers = forms.find((form) => form.type === "number" || form.type === "integer");
  const flag = forms.some((form) => form.type === "boolean");
  const fallback = schema.default ?? null;
  const initial = fallback === null ? "" : String(fallback);
  const parts = [schema.description, numbers && bounds(numbers), initial && `default: ${initial}`];
  const hint = parts.filter(Boolean).join("; ");
  if (flag && forms.length === 1) return { kind: "choice", choices: ["true", "false"], hint, initial };
  const kind = words.length && !numbers && forms.every((form) => form.enum || form.const !== undefined) ? "choice" : "text";
  return { kind, choices: words, hint, initial };
}

function bounds({ type, minimum, maximum, exclusiveMinimum, exclusiveMaximum }) {
  const low = minimum !== undefined ? `from ${minimum}` : exclusiveMinimum !== undefined ? `above ${exclusiveMinimum}` : "";
  const high = maximum !== undefined ? `to ${maximum}` : exclusiveMaximum !== undefined ? `below ${exclusiveMaximum}` : "";
  const range = [low, high].filter(Boolean).join(" ");
  return range && `${type === "integer" ? "a whole number " : ""}${range}`;
}

/** Text of a form as the value it means; the server checks whether it is one that the option takes. */
export function valueOf(text, schema) {
  const types = (schema.anyOf ?? [schema]).map((form) => form.type);
  const numeric = types.some((type) => type === "number" || type === "integer");
  if (numeric && text.trim() !== "" && Number.isFinite(Number(text))) return Number(text);
  if (types.includes("boolean") && (text === "true" || text === "false")) return text === "true";
  if (types.includes("array") || types.includes("object")) {
    try {
      return JSON.parse(text);
    } catch {
      return text; // the server says what it expected
    }
  }
  return text;
}

/** A job's request; hyperparameters that were left at their defaults are left out of it. */
export function requestOf(form, method) {
  const settings = {};
  for (const [name, text] of Object.entries(form.settings)) {
    const schema = method.hyperparameters.properties[name];
    if (schema && text !== "" && text !== optionOf(schema).initial) settings[name] = valueOf(text, schema);
  }
  return {
    model: form.model,
    training_file: form.training_file,
    ...(form.validation_file && { validation_file: form.validation_file }),
    method: { type: method.id, [method.id]: { hyperparameters: settings } },
    ...(form.suffix && { suffix: form.suffix }),
    ...(form.seed && { seed: Number(form.seed) }),
    ...(form.name && { metadata: { name: form.name } }),
  };
}

/** A form filled in like an earlier job. */
export function formLike(job) {
  const settings = Object.entries(settingsOf(job)).filter(([, value]) => value !== null);
  return {
    model: job.model,
    training_file: job.training_file,
    validation_file: job.validation_file ?? "",
    method: job.method.type,
    settings: Object.fromEntries(settings.map(([name, value]) => [name, typeof value === "object" ? JSON.stringify(value) : String(value)])),
    suffix: "",
    seed: String(job.seed),
    name: job.metadata?.name ?? "",
  };
}

/** The same job by the official client. */
export function pythonOf(request, names) {
  const { training_file: training, validation_file: validation, ...rest } = request;
  const upload = (name, file) => `${name} = client.files.create(file=open(${python(names(file))}, "rb"), purpose="fine-tune")`;
  const lines = [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(new URL("v1", document.baseURI).href)}, api_key="sk-…")`,
    upload("file", training),
    ...(validation ? [upload("held_out", validation)] : []),
    "job = client.fine_tuning.jobs.create(",
    "    training_file=file.id,",
    ...(validation ? ["    validation_file=held_out.id,"] : []),
    ...Object.entries(rest).map(([name, value]) => `    ${name}=${python(value)},`),
    ")",
    "print(job.id)",
  ];
  return lines.join("\n");
}

/** The same job by the command. */
export function commandOf(request, names) {
  const { type } = request.method;
  const settings = Object.entries(request.method[type].hyperparameters);
  const words = [
    "alignkit jobs submit",
    shell(names(request.training_file)),
    "--model",
    shell(request.model),
    "--method",
    type,
    ...(request.validation_file ? ["--validation-file", shell(names(request.validation_file))] : []),
    ...(request.suffix ? ["--suffix", shell(request.suffix)] : []),
    ...(request.seed !== undefined ? ["--seed", String(request.seed)] : []),
    ...Object.entries(request.metadata ?? {}).flatMap(([name, value]) => ["--metadata", shell(`${name}=${value}`)]),
    ...settings.flatMap(([name, value]) => ["-p", shell(`${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)]),
  ];
  return words.join(" ");
}

function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, inner]) => `${python(name)}: ${python(inner)}`).join(", ")}}`;
  }
  return JSON.stringify(value); // JSON's numbers and text are Python's
}

const shell = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
