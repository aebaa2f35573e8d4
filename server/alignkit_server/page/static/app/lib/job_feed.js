// One job as it changes: what happened before, then a stream of what happens.
import { ApiError } from "./api.js";
import { withPoint } from "./curves.js";
import { isOver } from "./jobs.js";

const POINTS = 1000; // of each curve; the server keeps lows and highs
const MESSAGES = 1000;
const RECENT = 100;
const AGAIN_SECONDS = [1, 2, 5, 10];
const DRAW_MILLISECONDS = 250;

/** Follows one job, and hands on {job, series, messages, steps, live} whenever they change. */
export class JobFeed {
  #stop = new AbortController();
  #timer = null;
  #seen = new Set();

  /**
   * @param {import("./api.js").Api} api
   * @param {string} id
   * @param {(state: object) => void} changed
   */
  constructor(api, id, changed) {
    this.api = api;
    this.path = `fine_tuning/jobs/${encodeURIComponent(id)}`;
    this.id = id;
    this.changed = changed;
    this.state = { job: null, series: {}, messages: [], steps: null, live: false, error: null };
  }

  /** Follow to the job's end, however often the connection is lost. */
  async run() {
    for (let tries = 0; !this.#stop.signal.aborted; ) {
      try {
        await this.#look();
        tries = 0;
        if (isOver(this.state.job)) break;
        await this.#listen();
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        this.#set({ error, live: false });
        if (error instanceof ApiError && [401, 403, 404].includes(error.status)) return; // asking again is no use
        await this.#wait(AGAIN_SECONDS[Math.min(tries, AGAIN_SECONDS.length - 1)]);
        tries += 1;
      }
    }
    this.#set({ live: false });
  }

  /** End it. */
  stop() {
    this.#stop.abort();
    clearTimeout(this.#timer);
  }

  /** Take a job that an action has just given back. */
  take(job) {
    this.#set({ job });
  }

  async #look() {
    const options = { signal: this.#stop.signal };
    // In this order: what happens between the looks is in the stream, which begins after the newest of `recent`.
    const recent = await this.api.get(`${this.path}/events`, { limit: RECENT }, options);
    const [job, metrics, told] = await Promise.all([
      this.api.get(this.path, {}, options),
      this.api.get(`${this.path}/metrics`, { max_points: POINTS }, options),
      this.api.get(`${this.path}/events`, { type: "message", limit: MESSAGES }, options),
    ]);
    this.#seen = new Set(told.data.map((event) => event.id));
    this.lastEvent = recent.data[0]?.id;
    const newest = recent.data.find((event) => event.type === "metrics");
    this.#set({
      job,
      series: metrics.series,
      messages: told.data,
      steps: newest ? stepsOf(newest.data) : null,
      error: null,
    });
  }

  async #listen() {
    this.#set({ live: true });
    for await (const event of this.api.events(this.id, this.lastEvent, this.#stop.signal)) {
      this.lastEvent = event.id;
      if (event.type === "metrics") this.#measured(event.data);
      else this.#told(event);
    }
    // The stream ended: the job did, or a proxy closed it. The next look tells.
    await this.#wait(AGAIN_SECONDS[0]);
  }

  #measured(report) {
    this.#set({ series: withPoint(this.state.series, report), steps: stepsOf(report) ?? this.state.steps });
  }

  async #told(event) {
    if (this.#seen.has(event.id)) return;
    this.#seen.add(event.id);
    this.#set({ messages: [event, ...this.state.messages] });
    // A message marks a change of the job: its status, its place, a checkpoint.
    const job = await this.api.get(this.path, {}, { signal: this.#stop.signal }).catch(() => null);
    if (job) this.#set({ job });
  }

  #set(changes) {
    this.state = { ...this.state, ...changes };
    // Many events at once, as after a resume, are drawn once.
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      if (!this.#stop.signal.aborted) this.changed(this.state);
    }, DRAW_MILLISECONDS);
  }

  #wait(seconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.#stop.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

function stepsOf(report) {
  return Number.isInteger(report?.total_steps) ? { step: report.step, total: report.total_steps } : null;
}
