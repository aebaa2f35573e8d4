// How far a job is.
import { useEvery, useSession } from "../lib/hooks.js";
import { html, useState } from "../lib/ui.js";

const SECONDS = 5;

/** A bar of steps made, for a job that has made some. `steps` where they are known, else asked for. */
export function Progress({ job, steps }) {
  if (steps) return html`<${Bar} ...${steps} />`;
  return job.status === "running" ? html`<${Asked} job=${job} />` : null;
}

function Asked({ job }) {
  const { api } = useSession();
  const [steps, setSteps] = useState(null);
  const path = `fine_tuning/jobs/${encodeURIComponent(job.id)}/metrics`;
  const ask = async () => {
    try {
      const { series } = await api.get(path, { names: "total_steps", max_points: 4 });
      setSteps(series.total_steps && { step: series.total_steps.steps.at(-1), total: series.total_steps.values.at(-1) });
    } catch {
      // the table itself says so when the server is away
    }
  };
  useEvery(SECONDS, ask, [path]);
  return steps && html`<${Bar} ...${steps} />`;
}

const Bar = ({ step, total }) => html`
  <progress max=${total} value=${step} aria-label="Steps"></progress> <span class="nowrap">${step} / ${total}</span>
`;
