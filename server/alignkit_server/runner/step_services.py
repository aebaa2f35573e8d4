"""What the steps of a job's workflow work with; set when the runner starts, since DBOS steps are module functions."""

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
    """What the steps work with."""

    settings: Settings
    ledger: JobLedger
    executor: Executor
    engines: EngineManager
    stopping: threading.Event


class JobFailedError(Exception):
    """A job cannot go on; becomes its `error`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, since DBOS stores and rebuilds it
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


class Detached(BaseException):
    """The server stops while a job runs: not an outcome, so DBOS must not record one (it records Exceptions)."""


_services: StepServices | None = None


def install(services: StepServices) -> None:
    """Let every step work with `services` from now on."""
    global _services  # noqa: PLW0603 - DBOS workflows are module functions
    _services = services


def use() -> StepServices:
    """What the runner was started with."""
    if _services is None:
        raise RuntimeError("the runner is not started")
    return _services


def folder_of(job_id: str) -> RunFolder:
    """The job's folder."""
    return RunFolder(use().settings.jobs_dir / job_id)


def with_log(message: str, folder: RunFolder) -> str:
    """`message` and the last lines of the training log, without paths and the trackers' credentials."""
    tail = folder.log_tail()
    text = f"{message}\nLast lines of the training log:\n{tail}" if tail else message
    return scrub_paths(without_secrets(text))
