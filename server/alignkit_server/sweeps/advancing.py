"""Moves sweeps on: compares jobs that wait at a rung, stops the weak ones, resumes the others, and ends sweeps.

Every server does this now and then. A change is made under a lock of the sweep's row, so it is made once.
"""

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from alignkit.sweep import Halving, sweep_of
from alignkit_server.clock import now
from alignkit_server.database import Database, after_commit
from alignkit_server.ids import EVENT, new_id
from alignkit_server.job_status import FINISHED, PAUSED
from alignkit_server.jobs.repository import EventRepository, JobRepository
from alignkit_server.services import Services
from alignkit_server.sweeps.repository import RUNNING, SweepRepository
from alignkit_server.tables import Event, Job, Sweep
from alignkit_server.webhooks.repository import announce

log = structlog.get_logger()


def advance(database: Database, services: Services) -> None:
    """Move on every running sweep that can. A failure is logged, and the next sweep follows."""
    with database.reading() as session:
        running = select(Sweep).where(Sweep.status == RUNNING).order_by(Sweep.seq)
        due = [sweep for sweep in session.scalars(running) if _Advance(session, services, sweep).is_due()]
        found = [(sweep.project_id, sweep.id) for sweep in due]
    for project_id, sweep_id in found:
        try:
            with database.writing() as session:
                sweep = SweepRepository(session, project_id).locked(sweep_id)
                step = _Advance(session, services, sweep)
                if sweep.status == RUNNING and step.is_due():  # another server may have been faster
                    step.make()
        except Exception:
            log.exception("a sweep could not move on; it is tried again", sweep_id=sweep_id)


class _Advance:
    """The next change of one sweep, in one transaction."""

    def __init__(self, session: Session, services: Services, sweep: Sweep) -> None:
        self._session = session
        self._services = services
        self._sweep = sweep
        self._sweeps = SweepRepository(session, sweep.project_id)
        self._jobs = self._sweeps.jobs(sweep)
        self._left = [job for job in self._jobs if job.status not in FINISHED]
        self._halving = sweep_of(sweep.spec).halving

    def is_due(self) -> bool:
        """Whether all jobs have finished, or all that have not wait at the rung."""
        if not self._left:
            return True
        if self._halving is None or self._sweep.rung >= len(self._halving.rungs):
            return False
        waiting = all(job.status == PAUSED for job in self._left)
        return waiting and self._sweeps.arrived(self._left, self._halving.rungs[self._sweep.rung])

    def make(self) -> None:
        """Make the change."""
        if not self._left:
            self._end()
        elif self._halving is not None:
            self._halve(self._halving, self._halving.rungs[self._sweep.rung])

    def _end(self) -> None:
        statuses = {job.status for job in self._jobs}
        if "succeeded" in statuses:
            self._finish("succeeded")
        elif "failed" in statuses:
            errors = [str(job.error["message"]) for job in self._jobs if job.error]
            self._finish(
                "failed", "no_job_succeeded", f"No job of the sweep succeeded: {' '.join(errors[:1])}"
            )
        else:
            self._finish("cancelled")

    def _finish(self, status: str, code: str = "", message: str = "") -> None:
        self._sweep.status, self._sweep.finished_at = status, now()
        self._sweep.error = {"code": code, "message": message, "param": None} if code else None

    def _halve(self, halving: Halving, rung: int) -> None:
        values = self._sweeps.values_at(self._left, halving.metric, rung)
        if not values:
            reported = ", ".join(self._sweeps.reported(self._left)) or "none"
            message = (
                f"No job reported {halving.metric} up to step {rung}; reported were {reported}. The jobs are "
                "paused: resume or cancel them, or cancel the sweep."
            )
            self._finish("failed", "metric_not_reported", message)
            return
        reasons = halving.stopped({job.id: values.get(job.id) for job in self._left}, rung)
        following = halving.rungs[self._sweep.rung + 1 : self._sweep.rung + 2]
        for job in self._left:
            if job.id in reasons:
                self._stop(job, reasons[job.id])
            else:
                self._resume(job, following[0] if following else None)
        self._sweep.rung += 1

    def _resume(self, job: Job, until: int | None) -> None:
        training = job.recipe["training"] | {"pause_at": until}
        again = {"attempt": job.attempt + 1, "turn": None, "recipe": job.recipe | {"training": training}}
        if self._change(job, "queued", "The job goes on: it is among the best of its sweep", **again):
            job_id = job.id
            after_commit(self._session, lambda: self._services.enqueue(job_id))

    def _stop(self, job: Job, reason: str) -> None:
        self._sweep.stopped = self._sweep.stopped | {job.id: reason}
        if self._change(job, "cancelled", f"The job was stopped by its sweep: {reason}", finished_at=now()):
            announce(self._session, job, job.status)
            job_id = job.id
            after_commit(self._session, lambda: self._services.cancel(job_id))

    def _change(self, job: Job, status: str, message: str, **values: object) -> bool:
        """Change a paused job, and say so in its events."""
        repository = JobRepository(self._session, self._sweep.project_id)
        if not repository.change(job, status, only_from=(PAUSED,), estimated_finish=None, **values):
            return False
        event = Event(id=new_id(EVENT), job_id=job.id, created_at=now(), level="info", message=message)
        event.type = "message"
        EventRepository(self._session, self._sweep.project_id).add(event)
        return True
