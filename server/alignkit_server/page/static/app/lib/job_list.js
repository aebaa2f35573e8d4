// All jobs of a project, kept current with few requests however many there are.
import { isOver } from "./jobs.js";

const PAGE = 1000; // the most that the server gives at once
const NEWEST = 100;
const LOOKED_AT = 20;

/** The jobs of one project, newest first. */
export class JobList {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
    this.jobs = [];
  }

  /** Everything, at first; then what is new and what had not finished. Returns the jobs. */
  async refresh() {
    this.jobs = this.jobs.length ? await this.#changes() : await this.api.all("fine_tuning/jobs", {}, PAGE);
    return this.jobs;
  }

  async #changes() {
    const known = new Set(this.jobs.map((job) => job.id));
    const { data: newest, has_more: more } = await this.api.get("fine_tuning/jobs", { limit: NEWEST });
    if (more && !newest.some((job) => known.has(job.id))) {
      return this.api.all("fine_tuning/jobs", {}, PAGE); // more were made meanwhile than one look shows
    }
    const seen = new Set(newest.map((job) => job.id));
    const older = this.jobs.filter((job) => !seen.has(job.id)).slice(more ? 0 : this.jobs.length);
    return [...newest, ...(await this.#current(older))];
  }

  /** Jobs beyond the newest: those that have finished stay as they are, those that are gone are left out. */
  async #current(jobs) {
    const open = jobs.filter((job) => !isOver(job)).slice(0, LOOKED_AT);
    const path = (job) => `fine_tuning/jobs/${encodeURIComponent(job.id)}`;
    const look = async (job) => {
      try {
        return [job.id, await this.api.get(path(job))];
      } catch (error) {
        if (error.status !== 404) throw error;
        return [job.id, null];
      }
    };
    const fresh = new Map(await Promise.all(open.map(look)));
    return jobs.map((job) => (fresh.has(job.id) ? fresh.get(job.id) : job)).filter(Boolean);
  }
}
