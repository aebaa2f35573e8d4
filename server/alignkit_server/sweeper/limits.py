"""Limits that hold while a job runs: its time, its project's time and what the project has on disk.

A job that comes to a limit is paused, with an event that says so: its state is saved and its slot is freed.
"""

from collections.abc import Iterator

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.job_status import PAUSED
from alignkit_server.limits.quotas import job_time_used, limits_of, reached
from alignkit_server.limits.repository import UsageRepository
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.settings import Limits
from alignkit_server.tables import Job, Project

log = structlog.get_logger()


def enforce(database: Database, defaults: Limits) -> None:
    """Pause every running job that has come to a limit."""
    with database.reading() as session:
        found = list(_over(session, defaults))
    for job_id, why in found:
        message = (
            f"The job was paused: {why}. Resume it once there is room again; it goes on where it stopped"
        )
        paused = JobLedger(database).transition(
            job_id, PAUSED, only_from=("running",), events=[("warn", message)], estimated_finish=None
        )
        if paused:
            log.warning("paused a job at a limit", job_id=job_id, why=why)


def _over(session: Session, defaults: Limits) -> Iterator[tuple[str, str]]:
    """(job, reason) of the running jobs that are over a limit."""
    query = select(Job, Project.limits).join(Project, Job.project_id == Project.id)
    projects: dict[str, str | None] = {}
    for job, own in session.execute(query.where(Job.status == "running").order_by(Job.seq)):
        limits = limits_of(own or {}, defaults)
        if job.project_id not in projects:
            usage = UsageRepository(session, job.project_id).usage()
            projects[job.project_id] = reached(limits, usage)
        seconds = job.run_seconds + now() - (job.running_since or now())
        why = job_time_used(limits, seconds * job.gpus) or projects[job.project_id]
        if why is not None:
            yield job.id, why
