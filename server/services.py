"""What the parts of a running service share; made once by the application's lifespan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from server.database import Database
from server.jobs.ledger import JobLedger
from server.jobs.runner import JobRunner, Unpublish
from server.models.catalog import ModelCatalog
from server.settings import Settings


class Report(Protocol):
    """What checking a data file found (`alignkit.data.validation.FileReport`)."""

    @property
    def rows(self) -> int:
        """Rows in the file."""

    @property
    def ok(self) -> bool:
        """Whether a job may use it."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What is odd but usable."""

    def summary(self) -> str:
        """The findings, line by line."""


class FileCheck(Protocol):
    """`alignkit.data.validation.check_file`."""

    def __call__(self, path: Path, method: str, *, max_line_bytes: int) -> Report:
        """Check the file for use with the method."""


log = structlog.get_logger()

RecipeMaker = Callable[..., Any]
"""`alignkit.jobspec.recipe_for_job`; its result has `.recipe` (a pydantic model) and `.hyperparameters`."""


@dataclass(slots=True)
class Services:
    """Everything a request may need beside its own transaction."""

    settings: Settings
    database: Database
    ledger: JobLedger
    catalog: ModelCatalog
    check_file: FileCheck
    make_recipe: RecipeMaker
    unpublish: Unpublish
    runner: JobRunner | None
    runner_started: bool = False

    def enqueue(self, job_id: str) -> None:
        """Hand a stored job to the runner. One that it cannot take waits for the next start, which takes all."""
        self._tell_runner("enqueue", job_id)

    def cancel(self, job_id: str) -> None:
        """Tell the runner of a cancelled job; its row has the last word."""
        self._tell_runner("cancel", job_id)

    def _tell_runner(self, what: str, job_id: str) -> None:
        if self.runner is None:
            return
        try:
            getattr(self.runner, what)(job_id)
        except Exception:
            log.exception("the runner failed", action=what, job_id=job_id)
