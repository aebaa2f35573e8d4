"""The objects that the parts of a running service share; created once by the application's lifespan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from anyio import CapacityLimiter

from alignkit_server.catalog.model_catalog import ModelCatalog
from alignkit_server.children.runner import ChildRunner
from alignkit_server.database import Database
from alignkit_server.pools.file_check_pool import FileCheckPool
from alignkit_server.pools.listening import Listening
from alignkit_server.pools.webhook_samples import Samples
from alignkit_server.reserve import Reserve
from alignkit_server.settings import Settings
from alignkit_server.storage.runs import RunStorage
from alignkit_server.vault import Vault

log = structlog.get_logger()


class JobRunner(Protocol):
    """A durable queue of jobs. `enqueue`, `cancel` and `announce` are thread-safe and idempotent."""

    def start(self) -> None:
        """Start working, first on the jobs that the previous server left (`JobLedger.active_jobs`)."""

    def stop(self) -> None:
        """Stop working; the next server takes over the running jobs."""

    def enqueue(self, job_id: str) -> None:
        """Take on a job whose row is committed."""

    def probe(self) -> None:
        """Raise an exception if the queue's own database does not take writes now; waits for nothing."""

    def cancel(self, job_id: str) -> None:
        """Stop the work on a job whose row is already marked cancelled."""

    def announce(self, job_id: str) -> None:
        """Send the webhooks of a job that has ended; they were stored together with its end."""

    def evaluate(self, run_id: str) -> None:
        """Take on a run of an eval whose rows are committed."""


class Sweeps(Protocol):
    """Removes what expired, and pauses jobs that are over a limit."""

    def start(self) -> None:
        """Begin to sweep now and then."""

    def stop(self) -> None:
        """End once the task at hand is done."""

    def sweep(self) -> None:
        """Sweep once, now."""


Unpublish = Callable[[str, str], None]
"""Callback (model name, base model) that takes a deleted model out of serving."""


@dataclass(slots=True)
class Services:
    """Everything a request may need besides its own transaction."""

    settings: Settings
    database: Database
    catalog: ModelCatalog
    runner: JobRunner | None
    unpublisher: Unpublish
    vault: Vault
    runs: RunStorage
    sweeper: Sweeps
    reserve: Reserve
    children: ChildRunner
    file_checks: FileCheckPool
    exports: FileCheckPool
    joins: FileCheckPool
    """For uploads that are completed: copies of gigabytes."""
    records: FileCheckPool
    """For answers that are computed from all the metrics that a job, or a sweep's jobs, reported."""
    runner_started: bool = False
    probes: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """Limiter for the threads of /readyz."""
    listening: Listening = field(default_factory=Listening)
    samples: Samples = field(default_factory=Samples)

    def enqueue(self, job_id: str) -> None:
        """Hand a stored job to the runner. If that fails, it waits for the next start, which enqueues all jobs."""
        if self.runner is not None:
            _attempt("enqueue", self.runner.enqueue, job_id)

    def cancel(self, job_id: str) -> None:
        """Tell the runner that a job was cancelled; the job's row is authoritative."""
        if self.runner is not None:
            _attempt("cancel", self.runner.cancel, job_id)
            _attempt("announce", self.runner.announce, job_id)

    def evaluate(self, run_id: str) -> None:
        """Hand a stored run of an eval to the runner. If that fails, it waits for the next start."""
        if self.runner is not None:
            _attempt("evaluate", self.runner.evaluate, run_id)

    def unpublish(self, name: str, base_model: str, job_id: str, step: int | None) -> None:
        """Take a deleted model out of serving and off the disk. Its row is already gone, so no request reaches it."""
        _attempt("unpublish", self.unpublisher, name, base_model)
        _attempt("drop_model", self.runs.drop_model, job_id, step)


def _attempt(action: str, call: Callable[..., None], *arguments: str | int | None) -> None:
    """Call something outside the database. The row is committed: log a failure, hide it from the client."""
    try:
        call(*arguments)
    except Exception:
        log.exception("failed after commit", action=action, arguments=arguments)
