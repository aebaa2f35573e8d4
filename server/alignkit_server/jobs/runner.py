"""What the service asks of whatever works on jobs."""

from collections.abc import Callable
from typing import Protocol


class JobRunner(Protocol):
    """A durable queue of jobs. `enqueue`, `cancel` and `announce` may be called from any thread, and twice."""

    def start(self) -> None:
        """Begin to work, first of all on the jobs that the last server left (`JobLedger.active_jobs`)."""

    def stop(self) -> None:
        """Stop working; running jobs are left to the next server."""

    def enqueue(self, job_id: str) -> None:
        """Take on a job, whose row is committed."""

    def cancel(self, job_id: str) -> None:
        """End the work on a job, whose row says cancelled already."""

    def announce(self, job_id: str) -> None:
        """Send the webhooks of a job that has ended, which are stored with its end."""


Unpublish = Callable[[str, str], None]
"""(model name, base model): take a deleted model out of serving."""
