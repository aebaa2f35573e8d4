"""What the parts of a running service share; made once by the application's lifespan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from alignkit_server.database import Database
from alignkit_server.jobs.checking import Checks
from alignkit_server.jobs.ledger import JobLedger
from alignkit_server.jobs.runner import JobRunner, Unpublish
from alignkit_server.models.catalog import ModelCatalog
from alignkit_server.settings import Settings


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
    runner: JobRunner | None
    unpublisher: Unpublish
    runner_started: bool = False
    checks: Checks = field(default_factory=Checks)

    def enqueue(self, job_id: str) -> None:
        """Hand a stored job to the runner. One that it cannot take waits for the next start, which takes all."""
        if self.runner is not None:
            _attempt("enqueue", self.runner.enqueue, job_id)

    def cancel(self, job_id: str) -> None:
        """Tell the runner of a cancelled job; its row has the last word."""
        if self.runner is not None:
            _attempt("cancel", self.runner.cancel, job_id)
            _attempt("announce", self.runner.announce, job_id)

    def unpublish(self, name: str, base_model: str) -> None:
        """Take a deleted model out of serving; without its row nobody reaches it any more."""
        _attempt("unpublish", self.unpublisher, name, base_model)


def _attempt(action: str, call: Callable[..., None], *arguments: str) -> None:
    """Call what lies outside the database. The row is committed: a failure is logged, and no longer the client's."""
    try:
        call(*arguments)
    except Exception:
        log.exception("failed after commit", action=action, arguments=arguments)
