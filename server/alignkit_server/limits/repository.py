"""What a project uses, counted from its rows: there is no counter that could drift."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.jobs.status import WAITING
from alignkit_server.tables import File, Job, Project

GPU_WINDOW = 30 * 24 * 3600
"""Seconds for which a job counts after it first started."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project uses now."""

    jobs_queued: int
    jobs_running: int
    file_bytes: int
    gpu_seconds: int


class UsageRepository:
    """Counts one project's rows."""

    def __init__(self, session: Session, project_id: str) -> None:
        self._session = session
        self._project_id = project_id

    def locked_limits(self) -> dict[str, int]:
        """The project's own limits. Until the transaction ends nobody else adds to what the project uses.

        Rows that only name the project can be added meanwhile: the lock is not of its key.
        """
        query = select(Project).where(Project.id == self._project_id).with_for_update(key_share=True)
        return self._session.scalars(query).one().limits or {}

    def usage(self) -> Usage:
        """Everything that is limited."""
        return Usage(self.jobs_queued(), self.jobs_running(), self.file_bytes(), self.gpu_seconds())

    def jobs_queued(self) -> int:
        """Jobs that wait."""
        return self._jobs(func.count(Job.seq), Job.status.in_(WAITING))

    def jobs_running(self) -> int:
        """Jobs at work."""
        return self._jobs(func.count(Job.seq), Job.status == "running")

    def file_bytes(self) -> int:
        """Bytes of all files on disk, those that expired and were not removed yet included."""
        query = select(func.coalesce(func.sum(File.bytes), 0)).where(File.project_id == self._project_id)
        return int(self._session.scalars(query).one())

    def gpu_seconds(self) -> int:
        """Seconds for which the jobs that started within the window have run, in all of their attempts."""
        seconds = Job.run_seconds + func.coalesce(now() - Job.running_since, 0)
        return self._jobs(func.coalesce(func.sum(seconds), 0), Job.started_at >= now() - GPU_WINDOW)

    def _jobs(self, what: ColumnElement[int], condition: ColumnElement[bool]) -> int:
        query = select(what).where(Job.project_id == self._project_id, condition)
        return int(self._session.scalars(query).one())
