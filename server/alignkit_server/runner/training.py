"""Trains one attempt of a job: starts the trainer, follows it, and restarts it if it was killed.

A trainer that fails writes that to result.json, and the job fails. A trainer that ended without a result was
killed (SIGKILL, out of memory, a lost machine). One that wrote "paused" without a request was ended from outside.
Both resume from the last complete checkpoint, up to `training_restarts` times from the same checkpoint.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog
import yaml

from alignkit.recipe import paths_of
from alignkit.run import facts
from alignkit.run.folder import RunFolder
from alignkit_server import tracing
from alignkit_server.executors.protocol import ExecutorUnavailableError
from alignkit_server.ids import rung_event
from alignkit_server.job_status import PAUSED
from alignkit_server.outages import Detached
from alignkit_server.reserve import ample_bytes, free_bytes
from alignkit_server.runner import memory
from alignkit_server.runner.event_follower import EventFollower
from alignkit_server.runner.ledger import JobRecord
from alignkit_server.runner.step_services import JobFailedError, failure, folder_of, job_step, use

POLL_SECONDS = 0.5
TOLERATED_SECONDS = 3.0
"""Seconds that an executor may be silent before the job's events mention it."""
OUT_OF_MEMORY = "out_of_memory"
MARKER = "attempt"
"""Name of the file that records which start of the job the run in this folder belongs to."""
DISK_FULL = "disk_full"
"""Code of the error with which a trainer reports a full disk."""
log = structlog.get_logger()
T = TypeVar("T")


class Start(NamedTuple):
    """One start of an attempt: the first, or a restart after the trainer was killed."""

    number: int = 0
    from_step: int = 0
    fruitless: int = 0
    """Number of starts from this step that made no progress."""

    def after(self, step: int) -> "Start":
        """The next start, from the checkpoint at `step`."""
        fruitless = 1 if step > self.from_step else self.fruitless + 1
        return Start(self.number + 1, step, fruitless)

    def once_more(self, step: int) -> "Start":
        """The next start, from the checkpoint at `step`, after one that does not count."""
        return Start(self.number + 1, step, self.fruitless if step == self.from_step else 0)


FIRST = Start()


class Ending(NamedTuple):
    """How a run ended, and its last complete checkpoint's step.

    `outcome` is "trained", "left" (paused, cancelled), "killed", or "starved": by a full disk, which has room again,
    or for want of memory, of which the run now takes less.
    """

    outcome: str
    step: int = 0


def train(job_id: str, attempt: int) -> bool:
    """Train until there is a result; False if the job was paused or cancelled. Part of the workflow.

    Raises JobFailedError if training failed for good.
    """
    start = FIRST
    while launch(job_id, attempt, start):
        ending = Ending(*watch(job_id, attempt, start))
        if ending.outcome == "starved":
            start = start.once_more(ending.step)
        elif ending.outcome == "killed":
            start = start.after(ending.step)
        else:
            return ending.outcome == "trained"
    return False


@job_step("launch")
@tracing.stage("launch")
def launch(job_id: str, attempt: int = 1, start: Start = FIRST) -> bool:
    """Write the recipe and start training; False if the job was paused or cancelled meanwhile."""
    services = use()
    job = services.ledger.get(job_id)
    if job.attempt != attempt:
        return False
    begins = services.ledger.transition(
        job_id,
        "running",
        only_from=("validating_files", "queued"),
        events=[("info", "Fine-tuning job started" if attempt == 1 else "Fine-tuning job resumed")],
    )
    if begins and attempt == 1:
        tracing.queued(job_id, job.created_at)
    if not is_current(job_id, attempt):
        return False
    folder = folder_of(job_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    if _prepare(folder, job, f"{attempt}.{start.number}"):
        _require_inputs(job)
        # A run that reported anything resumes in its own folder, from the beginning if it has no checkpoint.
        resume = attempt > 1 or folder.events.exists() or folder.settled.exists()
        if not services.executor.anywhere:  # else the run's own machine counts
            memory.remember(folder)
        answered(job_id, lambda: services.executor.start(folder.path, resume=resume))
    return True


def is_current(job_id: str, attempt: int) -> bool:
    """Whether the job is running and this is still its current attempt."""
    job = use().ledger.get(job_id)
    return job.status == "running" and job.attempt == attempt


def _require_inputs(job: JobRecord) -> None:
    """Fail a job whose input files were deleted from disk while it waited; its trainer could not report why."""
    for keys, value in paths_of(job.recipe):
        if not Path(value).exists():
            message = (
                f"{'.'.join(keys)} is no longer on this server's disk: restore it, or create another job."
            )
            raise JobFailedError("input_gone", message)


def _prepare(folder: RunFolder, job: JobRecord, start: str) -> bool:
    """Prepare the folder for this start, once; returns whether anything is left to train."""
    marker = folder.path / MARKER
    if not marker.exists() or marker.read_text(encoding="utf-8") != start:
        _wind_down(job.id, folder)  # the previous attempt may still be saving its state
        if (folder.read_result() or {}).get("status") == "succeeded":
            return False
        folder.result.unlink(missing_ok=True)
        folder.recipe.write_text(
            yaml.safe_dump(job.recipe, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        _end_last_line(folder)
        marker.write_text(start, encoding="utf-8")
    return True


def _end_last_line(folder: RunFolder) -> None:
    """Terminate an event line that a killed trainer left half written, so that the next event starts a new line."""
    try:
        with folder.events.open("r+b") as file:
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        return


@job_step("watch")
@tracing.stage("train")
def watch(job_id: str, attempt: int = 1, start: Start = FIRST) -> tuple[str, int]:
    """Follow the run until its process is gone; returns the fields of an `Ending`.

    DBOS records them as plain values, so the records stay readable if a class moves.
    Raises JobFailedError if the run failed, or was killed too often.
    """
    outcome, step = _follow(job_id, attempt, start)
    return outcome, step


def _follow(job_id: str, attempt: int, start: Start) -> Ending:
    services, folder = use(), folder_of(job_id)
    reader = EventFollower(services.ledger, job_id, folder)
    while answered(job_id, lambda: services.executor.running(folder.path), meanwhile=reader.read):
        reader.read()
        if not is_current(job_id, attempt):
            _wind_down(job_id, folder)
        elif services.stopping.wait(POLL_SECONDS):
            raise Detached
    reader.read()
    _keep_peak(job_id, folder)
    result = folder.read_result() or {}
    if not is_current(job_id, attempt) or _paused_at_rung(job_id, folder, result):
        return Ending("left")
    if result.get("status") == "succeeded":
        return Ending("trained")
    error = result.get("error") or {}
    full = error.get("code") == DISK_FULL
    if result.get("status") == "failed" and not full:
        message = error["message"]
        if error["code"] == OUT_OF_MEMORY:
            message = f"{message} {_what_fits(job_id)}"
        raise failure(error["code"], message, folder)
    if (full or not result) and (starved := _starved(job_id, attempt, folder)) is not None:
        return starved
    if full and start.after(step_of_last(folder)).fruitless > services.settings.training_restarts:
        raise failure(DISK_FULL, error["message"], folder)
    return _killed(job_id, folder, start, interrupted=result.get("status") == PAUSED)


def _paused_at_rung(job_id: str, folder: RunFolder, result: dict[str, Any]) -> bool:
    """Whether the run paused at the step where its sweep compares the jobs; if so, pause the job."""
    ledger = use().ledger
    rung = (ledger.get(job_id).recipe.get("training") or {}).get("pause_at")
    if result.get("status") != PAUSED or rung is None or step_of_last(folder) != rung:
        return False
    message = f"Training paused at step {rung}, where its sweep compares the jobs"
    ledger.add_event(job_id, level="info", message=message, data={"step": rung}, once=rung_event(rung))
    ledger.transition(job_id, PAUSED, only_from=("running",), estimated_finish=None)
    return True


def _keep_peak(job_id: str, folder: RunFolder) -> None:
    """Store the peak memory that the run measured, if it did."""
    if (peak := facts.peak_bytes(folder)) is not None:
        use().ledger.set_fields(job_id, peak_bytes=peak)


def step_of_last(folder: RunFolder) -> int:
    """The step of the run's last complete checkpoint; 0 without one."""
    checkpoint = folder.last_checkpoint()
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _starved(job_id: str, attempt: int, folder: RunFolder) -> Ending | None:
    """Wait until the disk has room for another checkpoint; None if it is not full."""
    services, last = use(), folder.last_checkpoint()
    needed = ample_bytes(folder.path)
    if free_bytes(folder.path) >= needed:
        return None
    if last is not None:
        needed += sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    step = step_of_last(folder)
    message = "The training process found the disk full; it resumes once there is room for another checkpoint"
    services.ledger.add_event(job_id, level="warn", message=message, once=f"full {attempt} {step}")
    while free_bytes(folder.path) < needed:
        if not is_current(job_id, attempt):
            return Ending("left")
        if services.stopping.wait(POLL_SECONDS):
            raise Detached
    return Ending("starved", step)


def _killed(job_id: str, folder: RunFolder, start: Start, *, interrupted: bool) -> Ending:
    """Decide about a run that was ended from outside: restart it, unless restarts made no progress before."""
    services, step = use(), step_of_last(folder)
    why = None if interrupted else memory.ran_out(folder, again=start.fruitless > 0)
    if why is not None and step <= start.from_step:  # it would run out again at the same place
        if _takes_less(job_id, folder, start, why):
            return Ending("starved", step)
        message = f"The training process ran out of memory: {why}. {_what_fits(job_id)}"
        raise failure(OUT_OF_MEMORY, message, folder)
    following, most = start.after(step), services.settings.training_restarts
    if following.fruitless > most:
        if not interrupted:
            times = f"{following.fruitless} times without progress" if most else "once"
            how = " by SIGKILL" if memory.was_killed(folder) else ""
            message = f"The training process died {times}{how}."
            raise failure("training_died", message, folder)
        message = "Training was interrupted from outside: resume the job to continue"
        services.ledger.transition(job_id, PAUSED, only_from=("running",), events=[("warn", message)])
        return Ending("left")
    ended = "was interrupted from outside" if interrupted else "died"
    whence = f"from the checkpoint at step {step}" if step else "from the beginning"
    services.ledger.add_event(
        job_id,
        level="warn",
        message=f"The training process {ended}; it resumes {whence}",
        data={"step": step, "restart": following.number},
        once=f"{services.ledger.get(job_id).attempt}.{following.number}",
    )
    log.warning("training restarts", job_id=job_id, step=step, restart=following.number)
    return Ending("killed", step)


def _takes_less(job_id: str, folder: RunFolder, start: Start, why: str) -> bool:
    """Store half the micro-batch for the next start of a run that ran out of memory; whether that was possible."""
    job = use().ledger.get(job_id)
    sizes = memory.halved(job.recipe, folder, f"{job.attempt}.{start.number}")
    if sizes is None:
        return False
    old, new = sizes
    message = (
        f"The training process ran out of memory with micro_batch_size {old} ({why}); it resumes with {new}"
    )
    data, once = {"micro_batch_size": new}, f"halved {job.attempt}.{start.number}"
    use().ledger.add_event(job_id, level="warn", message=message, data=data, once=once)
    return True


def _what_fits(job_id: str) -> str:
    """Advice on a job that ran out of memory; of another machine's memory nothing is known here."""
    services = use()
    if services.executor.anywhere:
        return memory.ADVICE
    return memory.what_fits(services.ledger.get(job_id).recipe)


def _wind_down(job_id: str, folder: RunFolder) -> None:
    """Stop the run. If the job can be resumed, the run may save its state first, within the grace period."""
    services = use()
    answered(job_id, lambda: services.executor.interrupt(folder.path))
    deadline = time.monotonic() + services.settings.pause_grace_seconds
    while answered(job_id, lambda: services.executor.running(folder.path)):
        if services.ledger.get(job_id).status == "cancelled" or time.monotonic() > deadline:
            answered(job_id, lambda: services.executor.stop(folder.path))
        elif services.stopping.wait(POLL_SECONDS):
            raise Detached


def answered(job_id: str, ask: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """The executor's answer to `ask`, waiting as long as it takes; events report an outage and its end.

    `meanwhile` is called now and then until the executor answers.
    """
    services, began, told = use(), time.time(), False

    def tell(level: str, message: str) -> None:
        services.ledger.add_event(job_id, level=level, message=message, once=f"{message} {began}")

    while True:
        try:
            answer = ask()
        except ExecutorUnavailableError as error:
            if not told and time.time() - began > TOLERATED_SECONDS:
                told = True
                tell("warn", f"{error}. The job waits until it is back; nothing is lost")
            meanwhile()
            if services.stopping.wait(POLL_SECONDS):
                raise Detached from error
        else:
            if told:
                tell("info", "The training executor answers again")
            return answer
