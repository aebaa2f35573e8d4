"""Sweeps of a project: create, list, cancel, and their tables."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit.sweep import SweepSpec, sweep_of
from alignkit_server.clock import now
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.errors import ApiError
from alignkit_server.job_status import UNFINISHED
from alignkit_server.jobs.idempotency import Idempotency, add_once
from alignkit_server.jobs.metrics import NOT_METRICS
from alignkit_server.jobs.presenting import present_error
from alignkit_server.jobs.repository import EventRepository
from alignkit_server.jobs.service import JobService
from alignkit_server.keys.service import Principal
from alignkit_server.pagination import CursorListObject, PageQuery
from alignkit_server.services import Services
from alignkit_server.sweeps.preparation import PreparedSweep
from alignkit_server.sweeps.repository import RUNNING, SweepRepository
from alignkit_server.sweeps.schemas import SweepObject, SweepPoint
from alignkit_server.tables import Job, Sweep

if TYPE_CHECKING:  # saves jinja2 at start-up
    from alignkit.sweep.folder import Row

SHOWN = ("model", "training_file", "validation_file", "method", "metadata")
"""Fields of the request that a sweep shows."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What the report of a sweep shows."""

    id: str
    spec: SweepSpec
    rows: "list[Row]"

    def page(self) -> str:
        """Render the report as an HTML page."""
        from alignkit.sweep.report import sweep_page  # saves jinja2 at start-up

        return sweep_page(self.id, self.spec, self.rows)


class SweepService:
    """The sweeps of one project."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._session = session
        self._project = project
        self._services = services
        self._sweeps = SweepRepository(session, project.project_id)

    def create(self, prepared: PreparedSweep, idempotency: Idempotency | None = None) -> SweepObject:
        """Store the sweep and all of its jobs, or none. Raises 429 if the project's quota has no room for them.

        If another request with the same idempotency key was faster, returns that request's sweep.
        """
        request = prepared.request.model_dump(mode="json", exclude_none=True)
        sweep = Sweep(
            id=prepared.id,
            created_at=now(),
            status=RUNNING,
            request={name: request[name] for name in SHOWN if name in request},
            spec=prepared.spec.as_json(),
            points=[{"job": job.id, "values": point.values} for point, job in prepared.jobs],
            stopped={},
            rung=0,
            idempotency_key=idempotency.key if idempotency else None,
            request_hash=idempotency.request_hash if idempotency else None,
        )
        stored = add_once(self._session, self._sweeps, sweep, idempotency)
        if stored is not sweep:
            return self._present(stored, table=True)
        jobs = JobService(self._session, self._project, self._services)
        for _, job in prepared.jobs:
            jobs.create(job)
        return self._present(sweep, table=True)

    def list(self, query: PageQuery) -> CursorListObject[SweepObject]:
        """A page of sweeps, newest first, without metrics."""
        page = self._sweeps.list(query)
        return CursorListObject.of(page, lambda sweep: self._present(sweep, table=False))

    def get(self, sweep_id: str) -> SweepObject:
        """One sweep, with its table."""
        return self._present(self._sweeps.get(sweep_id), table=True)

    def cancel(self, sweep_id: str) -> SweepObject:
        """Cancel a sweep and each of its jobs that has not finished. Raises 400 if nothing is left to cancel."""
        sweep = self._sweeps.locked(sweep_id)
        left = [job for job in self._sweeps.jobs(sweep) if job.status in UNFINISHED]
        if sweep.status != RUNNING and not left:
            raise ApiError(
                400,
                f"The sweep {sweep.id} has already finished: its status is {sweep.status!r}.",
                code="sweep_already_finished",
            )
        jobs = JobService(self._session, self._project, self._services)
        for job in left:
            jobs.cancel(job.id)
        if sweep.status == RUNNING:
            sweep.status, sweep.finished_at = "cancelled", now()
        self._session.flush()
        return self._present(sweep, table=True)

    def report(self, sweep_id: str) -> SweepReport:
        """Look up what the report of a sweep shows. Raises 404 while no job has reported a metric."""
        from alignkit.sweep.folder import Row  # saves jinja2 at start-up

        sweep = self._sweeps.get(sweep_id)
        spec = sweep_of(sweep.spec)
        jobs = {job.id: job for job in self._sweeps.jobs(sweep)}
        rows = []
        for point, known in zip(spec.points(), sweep.points, strict=True):
            job = jobs[known["job"]]
            status, reason = _outcome(sweep, job, self._project)
            step, metrics = self._last(job)
            rows.append(Row(point, status, step or 0, metrics, reason, job.id))
        if not any(row.metrics for row in rows):
            raise ApiError(404, _no_report(sweep), code="report_not_found")
        return SweepReport(sweep.id, spec, rows)

    def _present(self, sweep: Sweep, *, table: bool) -> SweepObject:
        spec = sweep_of(sweep.spec)
        jobs = {job.id: job for job in self._sweeps.jobs(sweep)}
        points = [self._point(sweep, point, jobs[point["job"]], spec, table=table) for point in sweep.points]
        rungs = spec.halving.rungs if spec.halving and sweep.status == RUNNING else []
        return SweepObject(
            id=sweep.id,
            created_at=sweep.created_at,
            finished_at=sweep.finished_at,
            status=sweep.status,
            error=present_error(sweep.error, self._project),
            model=sweep.request["model"],
            training_file=sweep.request["training_file"],
            validation_file=sweep.request.get("validation_file"),
            method=sweep.request.get("method"),
            metadata=sweep.request.get("metadata"),
            sweep=sweep.spec,
            next_rung=rungs[sweep.rung] if sweep.rung < len(rungs) else None,
            best=_best(spec, points),
            points=points,
        )

    def _point(
        self, sweep: Sweep, point: dict[str, Any], job: Job, spec: SweepSpec, *, table: bool
    ) -> SweepPoint:
        status, reason = _outcome(sweep, job, self._project)
        step, metrics = self._last(job) if table else (None, {})
        return SweepPoint(
            job=job.id,
            values=point["values"],
            status=status,
            step=step,
            reason=reason,
            metrics={name: metrics[name] for name in spec.metrics() if name in metrics},
        )

    def _last(self, job: Job) -> tuple[int | None, dict[str, float]]:
        """(last step, last finite value of each metric) of a job."""
        step, found = None, {}
        for report in EventRepository(self._session, self._project.project_id).metrics(job.id):
            step = report["step"] if isinstance(report.get("step"), int) else step
            found.update(
                {
                    name: float(value)
                    for name, value in report.items()
                    if name not in NOT_METRICS and isinstance(value, int | float) and math.isfinite(value)
                }
            )
        return step, found


def _outcome(sweep: Sweep, job: Job, project: Principal) -> tuple[str, str | None]:
    """(status, why it was stopped or failed) of a job of the sweep."""
    stopped = sweep.stopped.get(job.id)
    error = present_error(job.error, project)
    return "stopped" if stopped else job.status, stopped or (error.message if error else None)


def _no_report(sweep: Sweep) -> str:
    """The sentence that says why a sweep has no report."""
    if sweep.status == RUNNING:
        return f"The sweep {sweep.id} has no report yet: none of its jobs has reported a metric."
    return f"The sweep {sweep.id} has no report: none of its jobs reported a metric."


def _best(spec: SweepSpec, points: list[SweepPoint]) -> str | None:
    """The succeeded job with the best last value of halving's metric."""
    if spec.halving is None:
        return None
    metric = spec.halving.metric
    known = {
        point.job: point.metrics[metric]
        for point in points
        if point.status == "succeeded" and metric in point.metrics
    }
    ranked = spec.halving.best_first(known)
    return ranked[0] if ranked else None


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> SweepService:
    """The service for one request."""
    return SweepService(session, project, services)


SweepServiceDep = Annotated[SweepService, Depends(get_service)]
