// Every page by the first part of its address, and which of them are offered to whom.
import { html } from "../lib/ui.js";
import { Job } from "./job.js";
import { Jobs } from "./jobs.js";

const JobPages = ({ parts: [id], query }) => (id ? html`<${Job} id=${id} />` : html`<${Jobs} query=${query} />`);

/** Components that are given {parts, query} of their address. */
export const PAGES = { jobs: JobPages };

/** [address, label, scope that makes it useful] in the order of the menu. */
const PLACES = [["jobs", "Jobs", "read"]];

/** The places that a key can do something at. */
export const placesFor = ({ can }) => PLACES.filter(([, , scope]) => !scope || can(scope));
