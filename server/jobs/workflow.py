"""A job's way from the queue to an answering model, as a durable DBOS workflow.

    launch -> watch -> publish -> canary -> succeeded

Each step may be repeated after a crash: starting finds a run that goes on already, events are stored once a line,
publishing replaces whole folders, and every change of status is a compare-and-set. The training itself is an
external process that a restarted server finds again.
"""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import yaml
from dbos import DBOS, DBOSConfig, SetWorkflowID

from alignkit.run_folder import RunFolder
from server.engines.adapters import publish
from server.engines.canary import check
from server.engines.command import engine_dtype
from server.engines.errors import AdapterError, CanaryError, EngineError, scrub_paths
from server.engines.manager import EngineManager
from server.executors.protocol import Executor
from server.jobs.ledger import JobLedger, JobRecord
from server.jobs.reader import EventReader
from server.jobs.results import FILENAME, PURPOSE, result_file_id, results_csv
from server.jobs.status import PAUSED
from server.jobs.turns import Dispatcher, Turns
from server.models.names import model_name
from server.settings import Settings
from server.webhooks import delivery

log = structlog.get_logger()

QUEUE = "fine_tuning"
WORKFLOW_VERSION = "1"
"""Raised when the steps change so that a running workflow could not go on; otherwise upgrades adopt running jobs."""
POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class JobServices:
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


class _Detached(BaseException):
    """The server stops while a job runs: not an outcome, so DBOS must not record one (it records Exceptions)."""


_services: JobServices | None = None


def _use() -> JobServices:
    if _services is None:
        raise RuntimeError("the runner is not started")
    return _services


class DBOSRunner:
    """The durable queue of jobs: `training_slots` run at once, the rest wait for their project's turn.

    DBOS hears of a job when its turn comes.
    """

    def __init__(self, services: JobServices) -> None:
        self._services = services
        turns = Turns(services.ledger.database, services.settings)
        self._dispatcher = Dispatcher(turns, self._begin)

    def start(self) -> None:
        """Launch DBOS, adopt the jobs of the last server, and queue those it never queued."""
        _off_the_loop(self._start)

    def stop(self) -> None:
        """Leave the running jobs to the next server."""
        self._services.stopping.set()
        _off_the_loop(self._stop)

    def _start(self) -> None:
        global _services  # noqa: PLW0603 - DBOS workflows are module functions
        _services = self._services
        settings = self._services.settings
        config: DBOSConfig = {
            "name": "alignkit",
            "system_database_url": settings.database_url or f"sqlite:///{settings.root / 'dbos.sqlite'}",
            "application_version": WORKFLOW_VERSION,
            "log_level": "WARNING",
        }
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            global_concurrency=settings.training_slots,
            polling_interval_sec=0.2,
            on_conflict="always_update",
        )
        delivery.start(delivery.Outbox(self._services.ledger.database, settings))
        self._dispatcher.start()

    def _stop(self) -> None:
        self._dispatcher.stop()
        DBOS.destroy()

    def _begin(self, job_id: str) -> None:
        """Give a job to DBOS; once an attempt, however often it is called."""
        attempt = self._services.ledger.get(job_id).attempt
        with SetWorkflowID(job_id if attempt == 1 else f"{job_id}-{attempt}"):
            DBOS.enqueue_workflow(QUEUE, fine_tune, job_id, attempt)

    def enqueue(self, job_id: str) -> None:  # noqa: ARG002 - its row is in the queue already
        """Look whether the job's turn has come."""
        self._dispatcher.wake()

    def cancel(self, job_id: str) -> None:
        """Nothing to do: the job's status is cancelled already, and every step looks at it."""

    def announce(self, job_id: str) -> None:
        """Queue the job's webhooks."""
        for delivery_id in delivery.pending(job_id):
            delivery.enqueue(delivery_id)


def _off_the_loop(work: Callable[[], None]) -> None:
    """Run `work` in a thread and wait: DBOS refuses these calls where an event loop runs."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


@DBOS.workflow(name="fine_tune")
def fine_tune(job_id: str, attempt: int = 1) -> None:
    """Run one job to its end, or until it is paused; every outcome is in the ledger.

    A job that was resumed is another `attempt`, a workflow of its own.
    """
    try:
        if not launch(job_id, attempt) or watch(job_id, attempt):
            return
        publish_models(job_id)
        prove(job_id)
        finish(job_id)
    except JobFailedError as error:
        fail(job_id, error.code, str(error))
    except Exception as error:
        log.exception("job crashed", job_id=job_id)
        fail(job_id, "internal_error", f"The server failed while working on the job: {type(error).__name__}")
    for delivery_id in webhooks(job_id):
        delivery.enqueue(delivery_id)


@DBOS.step(name="webhooks")
def webhooks(job_id: str) -> list[str]:
    """The events that tell of the job's end."""
    return delivery.pending(job_id)


def folder_of(job_id: str) -> RunFolder:
    """The job's folder."""
    return RunFolder(_use().settings.jobs_dir / job_id)


@DBOS.step(name="launch")
def launch(job_id: str, attempt: int = 1) -> bool:
    """Write the recipe and start training; False if the job was paused or cancelled while it waited."""
    services = _use()
    job = services.ledger.get(job_id)
    if job.attempt != attempt:
        return False
    services.ledger.transition(
        job_id,
        "running",
        only_from=("validating_files", "queued"),
        events=[("info", "Fine-tuning job started" if attempt == 1 else "Fine-tuning job resumed")],
        started_at=int(time.time()),
    )
    if not _goes_on(job_id, attempt):
        return False
    folder = folder_of(job_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    if _prepare(folder, job, attempt):
        services.executor.start(folder.path, resume=attempt > 1)
    return True


def _goes_on(job_id: str, attempt: int) -> bool:
    """Whether this attempt is still what the job is at."""
    job = _use().ledger.get(job_id)
    return job.status == "running" and job.attempt == attempt


def _prepare(folder: RunFolder, job: JobRecord, attempt: int) -> bool:
    """Make the folder ready for this attempt, once; whether there is anything left to train."""
    marker = folder.path / "attempt"
    if not marker.exists() or marker.read_text(encoding="utf-8") != str(attempt):
        _wind_down(job.id, folder)  # the attempt before may still be saving its state
        if (folder.read_result() or {}).get("status") == "succeeded":
            return False
        folder.result.unlink(missing_ok=True)
        folder.recipe.write_text(
            yaml.safe_dump(job.recipe, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        marker.write_text(str(attempt), encoding="utf-8")
    return True


@DBOS.step(name="watch")
def watch(job_id: str, attempt: int = 1) -> bool:
    """Follow the run until its process is gone; whether it was paused or cancelled.

    Raises JobFailedError where it ended otherwise without success.
    """
    services, folder = _use(), folder_of(job_id)
    reader = EventReader(services.ledger, job_id, folder)
    while services.executor.running(folder.path):
        reader.read()
        if not _goes_on(job_id, attempt):
            _wind_down(job_id, folder)
        elif services.stopping.wait(POLL_SECONDS):
            raise _Detached
    reader.read()
    if not _goes_on(job_id, attempt):
        return True
    result = folder.read_result()
    if result is None:
        raise JobFailedError("training_died", _with_log("The training process died.", folder))
    if result["status"] == PAUSED:  # by a signal that did not come from here
        message = "Training was interrupted from outside: resume the job to go on"
        services.ledger.transition(job_id, PAUSED, only_from=("running",), events=[("warn", message)])
        return True
    if result["status"] != "succeeded":
        error = result["error"]
        raise JobFailedError(error["code"], _with_log(error["message"], folder))
    return False


def _wind_down(job_id: str, folder: RunFolder) -> None:
    """End the run, with its state saved if the job is to go on and the saving does not take too long."""
    services = _use()
    services.executor.interrupt(folder.path)
    deadline = time.monotonic() + services.settings.pause_grace_seconds
    while services.executor.running(folder.path):
        if services.ledger.get(job_id).status == "cancelled" or time.monotonic() > deadline:
            services.executor.stop(folder.path)
        elif services.stopping.wait(POLL_SECONDS):
            raise _Detached


def _with_log(message: str, folder: RunFolder) -> str:
    tail = folder.log_tail()
    return scrub_paths(f"{message}\nLast lines of the training log:\n{tail}" if tail else message)


@DBOS.step(name="publish")
def publish_models(job_id: str) -> None:
    """Put the adapter and every checkpoint where the base model's engine finds them."""
    services, folder = _use(), folder_of(job_id)
    job = services.ledger.get(job_id)
    checkpoints = {step_of(path): path for path in folder.checkpoints.glob("checkpoint-*")}
    for step, path in sorted(checkpoints.items()):
        _publish(services, job, path, step)
    _publish(services, job, folder.adapter, None)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def _publish(services: JobServices, job: JobRecord, path: Path, step: int | None) -> None:
    name = name_of(job, step)
    try:
        published = publish(services.settings, path, model_name=name, base_model=job.base_model)
    except AdapterError as error:
        raise JobFailedError("not_servable", str(error)) from error
    services.ledger.add_model(
        job.id, name=name, base_model=job.base_model, kind="adapter", path=str(published), step=step
    )
    if step is not None:
        services.ledger.add_checkpoint(
            job.id, step=step, model_name=name, metrics={}, path=f"checkpoints/{path.name}"
        )


def name_of(job: JobRecord, step: int | None = None) -> str:
    """The name a job's model is served under."""
    return model_name(job.base_model, job.project_name, job.suffix, job.id, step)


@DBOS.step(name="canary")
def prove(job_id: str) -> None:
    """Let the engine show that it answers as the trained adapter."""
    services, folder = _use(), folder_of(job_id)
    job = services.ledger.get(job_id)
    services.ledger.add_event(
        job_id, level="info", message="Checking that the served model answers as trained"
    )
    try:
        endpoint = services.engines.endpoint(job.base_model)
        report = check(
            endpoint,
            base_model=job.base_model,
            model_name=name_of(job),
            canary=_canary(folder),
            engine_dtype=engine_dtype(services.settings),
        )
    except EngineError as error:
        if services.stopping.is_set():
            raise _Detached from error
        raise JobFailedError(error.code, f"The model was trained but cannot be served: {error}") from error
    except CanaryError as error:
        raise JobFailedError(
            "canary_failed", f"The model was trained but is not served as trained: {error}"
        ) from error
    level = "info" if report.conclusive else "warn"
    services.ledger.add_event(job_id, level=level, message=str(report), data={"canary": report.to_dict()})


def _canary(folder: RunFolder) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(folder.canary.read_text(encoding="utf-8"))
    return value


@DBOS.step(name="finish")
def finish(job_id: str) -> None:
    """Name the model and close the job."""
    services = _use()
    result = folder_of(job_id).read_result() or {}
    name = name_of(services.ledger.get(job_id))
    result_file = _keep_results(services, job_id)
    services.ledger.transition(
        job_id,
        "succeeded",
        only_from=("running",),
        events=[
            ("info", f"New fine-tuned model created: {name}"),
            ("info", "The job has successfully completed"),
        ],
        fine_tuned_model=name,
        trained_tokens=result.get("trained_tokens"),
        result_files=[result_file],
        finished_at=int(time.time()),
        estimated_finish=None,
    )


def _keep_results(services: JobServices, job_id: str) -> str:
    """Make the job's metrics a file of its project; the file's id."""
    file_id, content = result_file_id(job_id), results_csv(job_id, services.ledger.metrics(job_id))
    path = services.settings.files_dir / file_id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    services.ledger.add_file(job_id, id=file_id, filename=FILENAME, purpose=PURPOSE, size=len(content))
    return file_id


@DBOS.step(name="fail")
def fail(job_id: str, code: str, message: str) -> None:
    """Close a job that cannot go on; a cancelled one stays cancelled."""
    _use().ledger.transition(
        job_id,
        "failed",
        only_from=("validating_files", "queued", "running"),
        events=[("error", message)],
        error={"code": code, "message": message, "param": None},
        finished_at=int(time.time()),
        estimated_finish=None,
    )
