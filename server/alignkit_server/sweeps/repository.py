"""Queries on sweeps and the jobs of their points."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from alignkit_server.ids import EVENT, fixed_id, rung_event
from alignkit_server.jobs.repository import EventRepository, JobRepository
from alignkit_server.pagination import Page, PageQuery
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import Event, Job, Sweep

RUNNING = "running"


class SweepRepository(ScopedRepository[Sweep]):
    """One project's sweeps."""

    table = Sweep
    kind = "sweep"

    def list(self, query: PageQuery) -> Page[Sweep]:
        """A page of the sweeps."""
        return self.page(self.select(), query)

    def locked(self, sweep_id: str) -> Sweep:
        """The sweep, whose row stays locked until the transaction ends. Raises 404."""
        self.get(sweep_id)
        query = self.select().where(Sweep.id == sweep_id).with_for_update()
        return self._session.scalars(query.execution_options(populate_existing=True)).one()

    def jobs(self, sweep: Sweep) -> Sequence[Job]:
        """The jobs of the points, in order."""
        ids = [point["job"] for point in sweep.points]
        query = JobRepository(self._session, self._project_id).select().where(Job.id.in_(ids))
        return self._session.scalars(query.order_by(Job.seq)).all()

    def arrived(self, jobs: Sequence[Job], step: int) -> bool:
        """Whether each of the jobs has paused at the rung of this step."""
        ids = {fixed_id(EVENT, job.id, rung_event(step)) for job in jobs}
        query = select(Event.id).where(Event.project_id == self._project_id, Event.id.in_(ids))
        return set(self._session.scalars(query)) == ids

    def values_at(self, jobs: Sequence[Job], metric: str, step: int) -> Mapping[str, float]:
        """Job id -> the last finite value of a metric up to `step`, of the jobs that reported one."""
        events = EventRepository(self._session, self._project_id)
        found: dict[str, float] = {}
        for job in jobs:
            for report in events.metrics(job.id):
                at, value = report.get("step"), report.get(metric)
                if isinstance(at, int) and at <= step and isinstance(value, int | float):
                    found[job.id] = float(value)
        return found

    def reported(self, jobs: Sequence[Job]) -> Sequence[str]:
        """The names of all metrics that a job reported."""
        events = EventRepository(self._session, self._project_id)
        return sorted({name for job in jobs for report in events.metrics(job.id) for name in report})
