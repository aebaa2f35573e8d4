"""Dependencies of the workflow's steps; set when the runner starts, because DBOS steps are module functions."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar
from uuid import uuid4

from dbos import DBOS

from alignkit.redaction import scrub_paths
from alignkit.run.folder import RunFolder
from alignkit.tracking import without_secrets
from alignkit_server.engines.manager import EngineManager
from alignkit_server.executors.protocol import Executor
from alignkit_server.outages import outlast
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class StepServices:
    """The objects that the workflow's steps use."""

    settings: Settings
    ledger: JobLedger
    executor: Executor
    engines: EngineManager
    stopping: threading.Event


class JobFailedError(Exception):
    """A failure that ends the job; becomes the job's `error`."""

    def __init__(self, code: str, message: str, log: str = "") -> None:
        super().__init__(code, message, log)  # all of them, since DBOS stores and rebuilds it
        self.code = code
        self.log = log
        """The last lines of the training log; they belong to the event, not to the job's message."""

    def __str__(self) -> str:
        return str(self.args[1])


_services: StepServices | None = None


def install(services: StepServices) -> None:
    """Set the services that every step uses from now on."""
    global _services  # noqa: PLW0603 - DBOS workflows are module functions
    _services = services


def use() -> StepServices:
    """The services that the runner was started with. Raises RuntimeError if it is not started."""
    if _services is None:
        raise RuntimeError("the runner is not started")
    return _services


def folder_of(job_id: str) -> RunFolder:
    """The job's run folder."""
    return RunFolder(use().settings.jobs_dir / job_id)


def failure(code: str, message: str, folder: RunFolder) -> JobFailedError:
    """The error of a run that failed: one sentence, and its log's last lines beside it, without paths and secrets."""
    sentence, log = (scrub_paths(without_secrets(text)) for text in (message, folder.log_tail()))
    return JobFailedError(code, sentence, log)


def job_step(
    name: str,
) -> Callable[[Callable[Concatenate[str, P], R]], Callable[Concatenate[str, P], R]]:
    """Decorator for a durable step of a job's workflow; the step's first argument is the job's id.

    While the database or the disk fails, the step is restarted repeatedly, as after a crash, and an event of the job
    reports it.
    """

    def decorate(work: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
        @DBOS.step(name=name)
        @functools.wraps(work)
        def outlasting(job_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
            outage = uuid4().hex

            def tell(what: str) -> None:
                message = f"{what}; the job continues as soon as this is over"
                use().ledger.add_event(job_id, level="warn", message=message, once=outage)

            return outlast(lambda: work(job_id, *args, **kwargs), use().stopping, tell=tell)

        return outlasting

    return decorate
