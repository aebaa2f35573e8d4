// The only module that talks to the server. Everything here is the public API: see /docs.
import { parseEvents } from "./sse.js";

const TIMEOUT = 60_000;
const EXPORT_TIMEOUT = 2 * 3_600_000; // of what writes a model anew
const READING_TIMEOUT = 600_000; // of what reads a whole file first

/** An answer other than success, in OpenAI's envelope. */
export class ApiError extends Error {
  constructor(status, detail) {
    super(detail.message);
    this.status = status;
    this.code = detail.code ?? null;
    this.param = detail.param ?? null;
  }
}

/** No answer at all: the server or the network is away, or slow. */
export class ConnectionError extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** A client of one server with one key. */
export class Api {
  /**
   * @param {string} key
   * @param {(error: ApiError) => void} onRefusedKey called when the server no longer takes the key
   */
  constructor(key, onRefusedKey = () => {}) {
    this.key = key;
    this.base = new URL("v1/", document.baseURI);
    this.onRefusedKey = onRefusedKey;
  }

  get(path, query, options) {
    return this.#json("GET", path, { query, ...options });
  }

  post(path, body = {}, options) {
    return this.#json("POST", path, { body, ...options });
  }

  /** Ask about a job that is not made yet. */
  ask(path, request, signal) {
    return this.post(path, request, { signal, timeout: READING_TIMEOUT });
  }

  delete(path) {
    return this.#json("DELETE", path, {});
  }

  /** Every object of a list, page by page. */
  async all(path, query = {}, pageSize = 100) {
    const found = [];
    let after;
    while (true) {
      const page = await this.get(path, { ...query, limit: pageSize, after });
      found.push(...page.data);
      if (!page.has_more || !page.data.length) return found;
      after = page.data.at(-1).id;
    }
  }

  /** Upload a file for fine-tuning; `onProgress` is given the share sent, 0 to 1. */
  upload(file, onProgress, signal) {
    // XMLHttpRequest, since fetch does not report how much of a body was sent.
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", file);
    const request = new XMLHttpRequest();
    request.open("POST", this.#url("files"));
    request.setRequestHeader("authorization", `Bearer ${this.key}`);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    signal?.addEventListener("abort", () => request.abort());
    return new Promise((resolve, reject) => {
      request.onerror = () => reject(new ConnectionError());
      request.onabort = () => reject(new DOMException("stopped", "AbortError"));
      request.onload = () => {
        if (request.status === 200) resolve(JSON.parse(request.responseText));
        else reject(this.#refusal(request.status, request.responseText));
      };
      request.send(form);
    });
  }

  /** The text of an answer that is not JSON, such as a recipe. */
  async text(path) {
    return (await this.#fetch("GET", path, { timeout: TIMEOUT })).text();
  }

  /** Save an answer as a file on the user's machine; a plain link could not carry the key. */
  async download(path, name) {
    const blob = await (await this.#fetch("GET", path, {})).blob();
    saveAs(blob, name);
  }

  /** Let the browser save a file or an archive by itself, straight to the disk: a link stands for the key. */
  async save(path, request = {}) {
    const { link } = await this.post(path, request, { timeout: EXPORT_TIMEOUT });
    click(this.#url(path, { link }), "");
  }

  /**
   * A job's events as they come, to the job's end.
   * @yields {object} the event
   */
  async *events(jobId, lastEventId, signal) {
    const headers = { accept: "text/event-stream", ...(lastEventId && { "last-event-id": lastEventId }) };
    const path = `fine_tuning/jobs/${encodeURIComponent(jobId)}/events`;
    const response = await this.#fetch("GET", path, { headers, signal });
    if (response.status === 204) return;
    yield* this.#parsed(response);
  }

  /** The chunks of a chat's answer. */
  async *chat(body, signal) {
    const response = await this.#fetch("POST", "chat/completions", { body: { ...body, stream: true }, signal });
    yield* this.#parsed(response);
  }

  async *#parsed(response) {
    try {
      for await (const { data } of parseEvents(response.body)) {
        if (data === "[DONE]") return;
        const value = JSON.parse(data);
        if (value.error?.message) throw new ApiError(response.status, value.error);
        yield value;
      }
    } catch (error) {
      throw error instanceof TypeError ? new ConnectionError() : error; // fetch's word for a broken stream
    }
  }

  async #json(method, path, options) {
    return (await this.#fetch(method, path, { timeout: TIMEOUT, ...options })).json();
  }

  async #fetch(method, path, { query, body, headers, signal, timeout }) {
    const signals = [signal, timeout && AbortSignal.timeout(timeout)].filter(Boolean);
    let response;
    try {
      response = await fetch(this.#url(path, query), {
        method,
        headers: {
          authorization: `Bearer ${this.key}`,
          ...(body && { "content-type": "application/json" }),
          ...headers,
        },
        body: body && JSON.stringify(body),
        signal: signals.length ? AbortSignal.any(signals) : undefined,
        cache: "no-store",
      });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ConnectionError();
    }
    if (!response.ok) throw this.#refusal(response.status, await response.text().catch(() => ""));
    return response;
  }

  #refusal(status, text) {
    const error = new ApiError(status, detailOf(status, text));
    if (status === 401) this.onRefusedKey(error);
    return error;
  }

  #url(path, query = {}) {
    const url = new URL(path, this.base);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
    }
    return url;
  }
}

/** Offer `blob` as a download. */
export function saveAs(blob, name) {
  const url = URL.createObjectURL(blob);
  click(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after the click returns
}

function click(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

function detailOf(status, text) {
  try {
    const { error } = JSON.parse(text);
    if (typeof error?.message === "string") return error;
  } catch {
    // a proxy's answer, not this server's
  }
  return { message: `The server answered ${status} without saying why.` };
}
