"""Dependencies of the workflow's steps; set when the runner starts, because DBOS steps are module functions."""

import threading
from dataclasses import dataclass

from alignkit.run.folder import RunFolder
from alignkit.tracking import without_secrets
from alignkit_server.engines.errors import scrub_paths
from alignkit_server.engines.manager import EngineManager
from alignkit_server.executors.protocol import Executor
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.settings import Settings


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

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, since DBOS stores and rebuilds it
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


class Detached(BaseException):
    """The server is stopping while a job runs. A BaseException, so that DBOS records no outcome for the step."""


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


def with_log(message: str, folder: RunFolder) -> str:
    """`message` with the last lines of the training log, without paths and tracker credentials."""
    tail = folder.log_tail()
    text = f"{message}\nLast lines of the training log:\n{tail}" if tail else message
    return scrub_paths(without_secrets(text))
