// What a job object says, in words.
import { duration, money, now } from "./format.js";

const OVER = new Set(["succeeded", "failed", "cancelled"]);
export const STATUSES = ["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"];

/** Whether nothing will happen to the job any more. */
export const isOver = (job) => OVER.has(job.status);

/** The hyperparameters that a job trains with. */
export const settingsOf = (job) => job.method[job.method.type]?.hyperparameters ?? {};

/** When a job will be done, or where it stands in the queue; once it is over, how long it ran, without waiting. */
export function outlook(job) {
  if (job.queue_position !== null && job.queue_position !== undefined) return `${job.queue_position}. in the queue`;
  if (job.estimated_finish) return `${duration(job.estimated_finish - now())} left`;
  if (isOver(job) && job.usage.run_seconds) return `took ${duration(job.usage.run_seconds)}`;
  return "";
}

/** How long an estimate expects a job to take, and what that is judged by. */
export function timeOf({ seconds, based_on_jobs: jobs }) {
  if (seconds === null) return "unknown: no earlier job of its kind";
  return `${duration(seconds)}, by ${jobs === 0 ? "the device's data sheet" : jobs === 1 ? "one earlier job" : `${jobs} earlier jobs`}`;
}

/** What an estimate expects a job to cost; "" where the service has no price. */
export function costOf({ cost }) {
  if (!cost) return "";
  const hour = `${money(cost.per_gpu_hour, cost.currency)} an hour`;
  return `${money(cost.amount, cost.currency)}, at ${hour}${cost.gpus > 1 ? ` for each of ${cost.gpus} GPUs` : ""}`;
}

/** What can be done with a job in its status: [label, path, confirmation]. */
export function actionsOf(job) {
  const all = {
    pause: ["Pause", "pause", null],
    resume: ["Resume", "resume", null],
    cancel: ["Cancel", "cancel", "Cancel this job? It keeps its checkpoints, and cannot be resumed."],
  };
  const names = { queued: ["pause", "cancel"], running: ["pause", "cancel"], paused: ["resume", "cancel"] };
  const more = { validating_files: ["cancel"] };
  return (names[job.status] ?? more[job.status] ?? []).map((name) => all[name]);
}

/** Whether a label of a job is the id of the sweep that made it. */
export const isSweep = (name, value) => name === "sweep" && value.startsWith("ftsweep-");

/** The last part of a job's or model's name, enough to tell it from others at a glance. */
export const short = (id) => (id.length > 22 ? `${id.slice(0, 8)}…${id.slice(-6)}` : id);
