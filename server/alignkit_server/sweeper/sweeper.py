"""A thread for regular tasks: delete what expired, measure jobs and enforce their limits, cut logs.

Every server of a database does them, so each task must be safe to repeat.
"""

from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import and_, or_, select

from alignkit_server.audit.repository import forget
from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.job_status import FINISHED, PAUSED, WAITING
from alignkit_server.repeating import Repeating
from alignkit_server.settings import Settings
from alignkit_server.storage.engine_caches import sweep_caches
from alignkit_server.storage.leftovers import remove_expired, remove_exports
from alignkit_server.storage.runs import RunStorage
from alignkit_server.sweeper.limits import enforce
from alignkit_server.sweeper.logs import rotate_logs
from alignkit_server.tables import Job

AT_WORK = ("running", PAUSED)

log = structlog.get_logger()


class Sweeper:
    """Does all tasks every `sweep_seconds`, for the first time after one such interval."""

    def __init__(self, settings: Settings, database: Database, runs: RunStorage) -> None:
        self._settings = settings
        self._database = database
        self._runs = runs
        self._sweeping = Repeating("sweeper", self.sweep, settings.sweep_seconds)

    def start(self) -> None:
        """Start the thread."""
        self._sweeping.start()

    def stop(self) -> None:
        """Stop the thread after its current task."""
        self._sweeping.stop()

    def sweep(self) -> None:
        """Do every task once. A failure is logged, and the next task follows."""
        tasks: Sequence[Callable[[], None]] = (
            lambda: remove_expired(self._database, self._settings),
            self._drop_exports,
            self._measure,
            self._runs.measure_stores,
            lambda: enforce(self._database, self._settings.limits),
            self._retire,
            lambda: rotate_logs(self._settings),
            lambda: sweep_caches(self._settings),
            self._forget,
        )
        for task in tasks:
            if self._sweeping.is_stopping:
                return
            try:
                task()
            except Exception:
                log.exception("a task of the sweeper failed; it is tried again at the next sweep")

    def _drop_exports(self) -> None:
        """Remove the exports that nobody downloaded, and count their jobs' bytes anew."""
        for job_id in remove_exports(self._settings.exports_dir):
            self._runs.measure(job_id)

    def _measure(self) -> None:
        """Measure the jobs that may have written since the last sweep, and those never measured before."""
        lately = now() - 2 * self._settings.sweep_seconds - 60
        never = and_(Job.disk_bytes.is_(None), Job.status.not_in(WAITING))
        for job_id in self._ids(or_(Job.status.in_(AT_WORK), never, Job.finished_at >= lately)):
            self._runs.measure(job_id)

    def _retire(self) -> None:
        """Remove the folders of jobs that finished longer ago than `run_retention_days`."""
        if self._settings.run_retention_days is None:
            return
        before = now() - self._settings.run_retention_days * 86400
        for job_id in self._ids(Job.status.in_(FINISHED), Job.finished_at < before, Job.pruned_at.is_(None)):
            self._runs.prune(job_id)

    def _forget(self) -> None:
        """Remove audit log entries older than `audit_retention_days`."""
        days = self._settings.audit_retention_days
        if days is not None:
            forget(self._database, now() - int(days * 86400))

    def _ids(self, *which: object) -> Sequence[str]:
        with self._database.reading() as session:
            return session.scalars(select(Job.id).where(*which).order_by(Job.seq)).all()  # type: ignore[arg-type]
