"""A project's usage, computed from its rows, so that no counter can drift."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.eval_status import OPEN
from alignkit_server.job_status import WAITING
from alignkit_server.tables import EvalRun, File, Job, Project, UploadPart

GPU_WINDOW = 30 * 24 * 3600
"""Seconds for which a job counts after its first start."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The current usage of a project."""

    jobs_queued: int
    jobs_running: int
    file_bytes: int
    disk_bytes: int
    gpu_seconds: int


class UsageRepository:
    """Computes the usage of one project."""

    def __init__(self, session: Session, project_id: str) -> None:
        self._session = session
        self._project_id = project_id

    def locked_limits(self) -> dict[str, int]:
        """The project's own limits. Locks the project against additions to its usage until the transaction ends.

        Rows that only refer to the project can still be added: the lock does not cover its key.
        """
        query = select(Project).where(Project.id == self._project_id).with_for_update(key_share=True)
        return self._session.scalars(query).one().limits or {}

    def usage(self) -> Usage:
        """The usage of everything that has a limit."""
        files = self.file_bytes()
        return Usage(
            self.jobs_queued(), self.jobs_running(), files, files + self.run_bytes(), self.gpu_seconds()
        )

    def jobs_queued(self) -> int:
        """Number of waiting jobs."""
        return self._jobs(func.count(Job.seq), Job.status.in_(WAITING))

    def jobs_running(self) -> int:
        """Number of running jobs."""
        return self._jobs(func.count(Job.seq), Job.status == "running")

    def file_bytes(self) -> int:
        """Bytes of all files and parts of uploads, those that expired and were not removed yet included."""
        return sum(
            int(self._session.scalars(select(func.coalesce(func.sum(table.bytes), 0)).where(mine)).one())
            for table in (File, UploadPart)
            for mine in [table.project_id == self._project_id]
        )

    def run_bytes(self) -> int:
        """Bytes of the jobs' folders, models and stores, as last measured, and of the runs of evals."""
        references = select(func.coalesce(func.sum(Project.reference_bytes), 0))
        stored = self._session.scalars(references.where(Project.id == self._project_id)).one()
        rows = select(func.coalesce(func.sum(EvalRun.disk_bytes), 0))
        evals = self._session.scalars(rows.where(EvalRun.project_id == self._project_id)).one()
        return self._jobs(func.coalesce(func.sum(Job.disk_bytes), 0)) + int(stored) + int(evals)

    def eval_runs_open(self) -> int:
        """Number of runs of evals that have not ended."""
        query = select(func.count(EvalRun.seq)).where(EvalRun.project_id == self._project_id)
        return int(self._session.scalars(query.where(EvalRun.status.in_(OPEN))).one())

    def gpu_seconds(self) -> int:
        """Seconds that the jobs started within the window have run, over all of their attempts, times their GPUs."""
        seconds = (Job.run_seconds + func.coalesce(now() - Job.running_since, 0)) * Job.gpus
        return self._jobs(func.coalesce(func.sum(seconds), 0), Job.started_at >= now() - GPU_WINDOW)

    def _jobs(self, what: ColumnElement[int], *conditions: ColumnElement[bool]) -> int:
        query = select(what).where(Job.project_id == self._project_id, *conditions)
        return int(self._session.scalars(query).one())
