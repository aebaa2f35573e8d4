// Every page by the first part of its address, and which of them are offered to whom.
import { html } from "../lib/ui.js";
import { Admin } from "./admin.js";
import { Compare } from "./compare.js";
import { Engines } from "./engines.js";
import { Files } from "./files.js";
import { Job } from "./job.js";
import { Jobs } from "./jobs.js";
import { Models } from "./models.js";
import { NewJob } from "./new_job.js";
import { Playground } from "./playground.js";
import { Project } from "./project.js";

const JobPages = ({ parts: [id], query }) => (id ? html`<${Job} id=${id} />` : html`<${Jobs} query=${query} />`);

/** Components that are given {parts, query} of their address. */
export const PAGES = {
  jobs: JobPages,
  new: NewJob,
  compare: Compare,
  playground: Playground,
  files: Files,
  models: Models,
  project: Project,
  engines: Engines,
  projects: Admin,
};

/** [address, label, scopes of which one makes it useful] in the order of the menu. */
const PLACES = [
  ["jobs", "Jobs", ["read"]],
  ["new", "New job", ["train"]],
  ["playground", "Playground", ["inference"]],
  ["files", "Files", ["read"]],
  ["models", "Models", ["read", "inference"]],
  ["project", "Project", null],
  ["engines", "Engines", ["admin"]],
  ["projects", "Projects", ["admin"]],
];

/** The places that a key can do something at. */
export const placesFor = ({ can }) => PLACES.filter(([, , scopes]) => !scopes || scopes.some(can));

/** Where whoever signs in begins. */
export const homeOf = (session) => placesFor(session)[0][0];
