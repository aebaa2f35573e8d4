"""The workflow's steps where the real way cannot be made to fail on demand: what becomes of the job."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from alignkit.run.checkpoints import seal
from alignkit.run.folder import RunFolder, write_json
from alignkit_server import outages
from alignkit_server.database import Database
from alignkit_server.engines.canary import FULL_PRECISION, CanaryReport, Difference
from alignkit_server.engines.errors import CanaryError, EngineError
from alignkit_server.executors.protocol import ExecutorUnavailableError
from alignkit_server.jobs.repository import EventRepository
from alignkit_server.keys.service import issue_key
from alignkit_server.migrate import migrate
from alignkit_server.pagination import PageQuery
from alignkit_server.runner import publishing, step_services, training, workflow
from alignkit_server.runner.event_follower import EventFollower
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.step_services import JobFailedError, StepServices, folder_of
from alignkit_server.runner.training import Ending, Start
from alignkit_server.settings import Settings
from alignkit_server.tables import Event, File, Job
from tests.server.runner.test_ledger import store_job

LAST = Start(3, 0, 3)
"""A start that is not repeated again."""


class FakeExecutor:
    """A run that is over at once, unless told otherwise."""

    anywhere = False

    def __init__(self) -> None:
        self.started: list[tuple[Path, bool]] = []
        self.stopped: list[Path] = []
        self.interrupted: list[Path] = []
        self.alive = False
        self.stubborn = False
        self.silent = 0

    def devices(self) -> None:
        return None

    def capacity(self) -> None:
        return None

    def start(self, folder: Path, *, resume: bool) -> None:
        self.started.append((folder, resume))

    def interrupt(self, folder: Path) -> None:
        self.interrupted.append(folder)
        self.alive = self.alive and self.stubborn

    def running(self, folder: Path) -> bool:
        if self.silent:
            self.silent -= 1
            raise ExecutorUnavailableError("The cluster does not answer: refused")
        return self.alive

    def stop(self, folder: Path) -> None:
        self.stopped.append(folder)
        self.alive = False


class FakeEngines:
    """An engine that cannot be had."""

    @contextmanager
    def leased(self, model: str, rank: int = 0, project_id: str = "") -> Iterator[str]:
        yield self.endpoint(model)

    def cleanup_leftovers(self) -> list[str]:
        return []

    def endpoint(self, base_model: str) -> str:
        raise EngineError("engine_unavailable", "vLLM is not installed")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[JobLedger]:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    migrate(url)
    database = Database(url)
    with database.writing() as session:
        issue_key(session, "mine")
    yield JobLedger(database)
    database.close()


@pytest.fixture
def job_id(ledger: JobLedger) -> str:
    with ledger._database.writing() as session:
        return store_job(session)


@pytest.fixture
def services(tmp_path: Path, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch) -> StepServices:
    services = StepServices(Settings(home=tmp_path), ledger, FakeExecutor(), FakeEngines(), threading.Event())  # type: ignore[arg-type]
    monkeypatch.setattr(step_services, "_services", services)
    return services


@pytest.fixture
def folder(services: StepServices, ledger: JobLedger, job_id: str) -> RunFolder:
    """The folder of a job that runs."""
    ledger.transition(job_id, "running", only_from=("queued",))
    folder = folder_of(job_id)
    folder.path.mkdir(parents=True)
    return folder


def messages(ledger: JobLedger, job_id: str) -> list[str]:
    project = ledger.get(job_id).project_id
    with ledger._database.reading() as session:
        page = EventRepository(session, project).list(job_id, PageQuery(after=None, limit=100))
    return [event.message for event in page.items][::-1]


def test_launching_twice_starts_and_tells_once(
    services: StepServices, ledger: JobLedger, job_id: str
) -> None:
    ledger.transition(job_id, "queued", only_from=("queued", "running", "validating_files"))
    assert training.launch(job_id)
    assert training.launch(job_id)
    assert messages(ledger, job_id).count("Fine-tuning job started") == 1
    assert folder_of(job_id).recipe.is_file()


def test_a_job_cancelled_in_the_queue_never_starts(
    services: StepServices, ledger: JobLedger, job_id: str
) -> None:
    ledger.transition(job_id, "cancelled", only_from=("queued", "running", "validating_files"))
    assert not training.launch(job_id)
    assert services.executor.started == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["model.adapter", "data.train", "method.teacher.path"])
def test_what_a_job_needs_was_taken_from_the_disk(
    services: StepServices, ledger: JobLedger, job_id: str, tmp_path: Path, place: str
) -> None:
    recipe: Any = str(tmp_path / "gone")
    for key in reversed(place.split(".")):
        recipe = {key: recipe}
    if "method" in recipe:
        recipe["method"]["type"] = "sinkd"
    with ledger._database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(recipe=recipe))
    with pytest.raises(JobFailedError) as caught:
        training.launch(job_id)
    assert str(caught.value).startswith(f"{place} is no longer on this server's disk")
    assert str(tmp_path) not in str(caught.value)
    assert not services.executor.started  # type: ignore[attr-defined]


def test_a_death_without_a_result_brings_the_log_without_paths(
    services: StepServices, job_id: str, folder: RunFolder
) -> None:
    folder.log.write_text(f"Step 1\nKilled while writing {folder.path}/adapter\n")
    with pytest.raises(JobFailedError) as caught:
        training.watch(job_id, start=LAST)
    assert caught.value.code == "training_died"
    assert "died 4 times without progress" in str(caught.value)
    assert "\n" not in str(caught.value), "the log stands apart"
    assert "Killed while writing …/adapter" in caught.value.log
    assert str(services.settings.root) not in caught.value.log


def test_a_killed_trainer_goes_on_from_its_last_whole_checkpoint(
    services: StepServices, ledger: JobLedger, job_id: str
) -> None:
    executor: Any = services.executor
    ledger.transition(job_id, "queued", only_from=("queued", "running", "validating_files"))
    assert training.launch(job_id)
    folder = folder_of(job_id)
    folder.emit("began")
    with folder.events.open("a") as file:
        file.write('{"half": ')
    for step, whole in ((4, True), (8, False)):
        path = folder.checkpoints / f"checkpoint-{step}"
        written = folder.checkpoints / "aside" if whole else path
        written.mkdir(parents=True)
        (written / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        if whole:
            seal(written, path, {})
    ending = Ending(*training.watch(job_id))
    assert training.watch(job_id) == ending == Ending("killed", 4), "and a repeat tells it once"
    start = Start().after(ending.step)
    assert start == Start(1, 4, 1)
    assert training.launch(job_id, start=start)
    assert executor.started[-1] == (folder.path, True)
    folder.emit("went on")
    EventFollower(ledger, job_id, folder).read()
    assert messages(ledger, job_id) == [
        "Fine-tuning job started",
        "began",
        "The training process died; it resumes from the checkpoint at step 4",
        "went on",
    ]


def test_only_deaths_without_a_new_checkpoint_count() -> None:
    start = Start()
    for step in (0, 0, 2, 2, 4, 4, 4):
        start = start.after(step)
    assert start == Start(7, 4, 3)


def test_an_engine_that_is_killed_does_not_take_the_job_along(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [EngineError("engine_failed", "vLLM hung up")] * 2
    report = CanaryReport(1, Difference(0.0, 0.0), FULL_PRECISION, over_base=None)

    def check(*_: Any, **__: Any) -> CanaryReport:
        if failures:
            raise failures.pop()
        return report

    folder.canary.write_text("{}")
    monkeypatch.setattr(FakeEngines, "endpoint", lambda *_: "http://127.0.0.1:9")
    monkeypatch.setattr(publishing, "check", check)
    monkeypatch.setattr(publishing, "BACK_OFF_SECONDS", 0.0)
    publishing.prove(job_id)
    publishing.prove(job_id)
    assert messages(ledger, job_id) == ["Checking that the served model answers as trained", str(report)]


def test_a_reported_failure_keeps_its_code(services: StepServices, job_id: str, folder: RunFolder) -> None:
    folder.result.write_text(
        '{"status": "failed", "error": {"code": "diverged", "message": "The loss is no number"}}'
    )
    with pytest.raises(JobFailedError, match="The loss is no number") as caught:
        training.watch(job_id)
    assert caught.value.code == "diverged"


@pytest.mark.parametrize(
    "result", [None, {"status": "failed", "error": {"code": "disk_full", "message": "Full"}}]
)
def test_a_run_that_a_full_disk_ended_waits_for_room_and_does_not_count_as_a_death(
    services: StepServices,
    ledger: JobLedger,
    job_id: str,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    result: Any,
) -> None:
    looks = [0, 0, 10**12]
    monkeypatch.setattr(training, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(training, "free_bytes", lambda _: looks.pop(0))
    if result:
        write_json(folder.result, result)
    assert training.watch(job_id, start=LAST) == ("starved", 0)
    assert looks == []
    assert LAST.once_more(0) == Start(4, 0, 3)
    assert LAST.once_more(2) == Start(4, 2, 0)
    assert [message for message in messages(ledger, job_id) if "found the disk full" in message]


def test_a_run_that_needs_more_than_there_is_fails_with_that(
    services: StepServices, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "free_bytes", lambda _: 10**12)
    write_json(folder.result, {"status": "failed", "error": {"code": "disk_full", "message": "Full"}})
    assert training.watch(job_id) == ("killed", 0)
    with pytest.raises(JobFailedError, match="Full") as caught:
        training.watch(job_id, start=LAST)
    assert caught.value.code == "disk_full"


def test_a_failed_run_is_told_once_with_its_log_apart(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    folder.log.write_text("Traceback\nRuntimeError: boom\n")
    folder.emit("The disk is full", level="error", data={"code": "disk_full"})
    EventFollower(ledger, job_id, folder).read()
    workflow.fail(job_id, "disk_full", "The disk is full", folder.log_tail())
    with ledger._database.reading() as session:
        (event,) = session.query(Event).where(Event.job_id == job_id, Event.level == "error")
        job = session.query(Job).where(Job.id == job_id).one()
    assert event.message == job.error["message"] == "The disk is full"
    assert event.data == {"code": "disk_full", "log": ["Traceback", "RuntimeError: boom"]}


def test_a_job_that_is_cancelled_waits_for_no_room(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> int:
        ledger.transition(job_id, "cancelled", only_from=("running",))
        return 0

    monkeypatch.setattr(training, "free_bytes", full)
    assert training.watch(job_id) == ("left", 0)


def test_a_step_waits_for_the_database_and_says_so_once(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0.01)
    write_json(folder.result, {"status": "succeeded"})
    get, left = JobLedger.get, [3]

    def away(self: JobLedger, job_id: str) -> Any:
        if left[0]:
            left[0] -= 1
            raise OperationalError("SELECT", {}, psycopg.OperationalError("connection refused"))
        return get(self, job_id)

    monkeypatch.setattr(JobLedger, "get", away)
    assert training.watch(job_id) == ("trained", 0)
    assert messages(ledger, job_id) == [
        "The server's database did not answer; the job continues as soon as this is over"
    ]


def test_a_stopping_server_lets_go_without_an_outcome(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    services.executor.alive = True  # type: ignore[attr-defined]
    services.stopping.set()
    with pytest.raises(outages.Detached):
        training.watch(job_id)
    assert not isinstance(outages.Detached(), Exception)
    assert services.executor.stopped == []  # type: ignore[attr-defined]


def test_a_paused_run_is_asked_to_save_and_is_no_failure(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    services.executor.alive = True  # type: ignore[attr-defined]
    ledger.transition(job_id, "paused", only_from=("running",))
    assert training.watch(job_id) == Ending("left")
    assert services.executor.interrupted == [folder.path]  # type: ignore[attr-defined]
    assert services.executor.stopped == []  # type: ignore[attr-defined]
    assert ledger.get(job_id).status == "paused"


def test_a_run_that_takes_too_long_to_pause_is_ended(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.executor.alive = services.executor.stubborn = True  # type: ignore[attr-defined]
    monkeypatch.setattr(services.settings, "pause_grace_seconds", 0.0)
    ledger.transition(job_id, "paused", only_from=("running",))
    assert training.watch(job_id) == Ending("left")
    assert services.executor.stopped == [folder.path]  # type: ignore[attr-defined]


def test_a_resumed_job_waits_for_its_old_run_and_goes_on(
    services: StepServices, ledger: JobLedger, job_id: str
) -> None:
    executor: Any = services.executor
    path = folder_of(job_id).path
    assert training.launch(job_id)
    executor.alive = True
    resume(ledger, job_id)
    assert not training.launch(job_id), "the attempt before is over"
    assert training.launch(job_id, 2)
    assert executor.interrupted == [path, path], "before each attempt, whatever may still run is wound down"
    assert executor.started == [(path, False), (path, True)]
    assert training.launch(job_id, 2), "a server that crashed here begins again"
    assert executor.started[-1] == (path, True)
    assert len(executor.interrupted) == 2, "and leaves its own run alone"
    assert messages(ledger, job_id) == ["Fine-tuning job started", "Fine-tuning job resumed"]


def test_a_run_that_succeeded_while_it_was_paused_is_not_trained_again(
    services: StepServices, ledger: JobLedger, job_id: str
) -> None:
    executor: Any = services.executor
    assert training.launch(job_id)
    folder = folder_of(job_id)
    folder.result.write_text('{"status": "succeeded"}')
    resume(ledger, job_id)
    assert training.launch(job_id, 2)
    assert len(executor.started) == 1
    assert training.watch(job_id, 2) == Ending("trained")


def test_a_run_that_is_interrupted_from_outside_again_and_again_is_paused(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    folder.result.write_text('{"status": "paused", "steps": 3}')
    assert training.watch(job_id) == Ending("killed", 0)
    assert ledger.get(job_id).status == "running"
    assert training.watch(job_id, start=LAST) == Ending("left")
    assert ledger.get(job_id).status == "paused"
    assert "resume the job to continue" in messages(ledger, job_id)[-1]


def resume(ledger: JobLedger, job_id: str) -> None:
    """Pause the job and put it into the queue again, as the service does."""
    with ledger._database.writing() as session:
        job = session.query(Job).where(Job.id == job_id).one()
        job.status, job.attempt = "queued", job.attempt + 1


def test_a_cancelled_run_is_stopped(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    services.executor.alive = True  # type: ignore[attr-defined]
    ledger.transition(job_id, "cancelled", only_from=("queued", "running", "validating_files"))
    services.executor.stubborn = True  # type: ignore[attr-defined]
    assert training.watch(job_id) == Ending("left")
    assert services.executor.stopped == [folder.path]  # type: ignore[attr-defined]
    assert ledger.get(job_id).status == "cancelled"


def test_without_vllm_the_job_fails_and_says_what_to_do(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    folder.canary.write_text("{}")
    with pytest.raises(JobFailedError, match="trained but cannot be served: vLLM is not installed") as caught:
        publishing.prove(job_id)
    assert caught.value.code == "engine_unavailable"
    ledger.transition(job_id, "running", only_from=("queued",))
    workflow.fail(job_id, caught.value.code, str(caught.value))
    assert ledger.get(job_id).status == "failed"
    assert messages(ledger, job_id)[-1] == str(caught.value)


def test_an_engine_that_answers_as_the_base_fails_the_job(
    services: StepServices, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CanaryError("vLLM answers as the base model")

    folder.canary.write_text("{}")
    monkeypatch.setattr(FakeEngines, "endpoint", lambda *_: "http://127.0.0.1:9")
    monkeypatch.setattr(publishing, "check", refuse)
    with pytest.raises(JobFailedError, match="answers as the base model") as caught:
        publishing.prove(job_id)
    assert caught.value.code == "canary_failed"


def test_events_are_read_once_and_whole(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    reader = EventFollower(ledger, job_id, folder)
    reader.read()
    folder.emit("one")
    half = json.dumps({"created_at": 1, "level": "info", "type": "message", "message": "two", "data": {}})
    with folder.events.open("a") as file:
        file.write(half[:20])
    reader.read()
    assert messages(ledger, job_id) == ["one"]
    with folder.events.open("a") as file:
        file.write(half[20:] + "\nnot json\n")
    reader.read()
    EventFollower(ledger, job_id, folder).read()  # the next server
    assert messages(ledger, job_id) == ["one", "two"]


def test_a_finished_jobs_metrics_are_a_file(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    for step, data in ((1, {"train_loss": 0.5}), (2, {"train_loss": None}), (2, {"valid_loss": 0.25})):
        report = {"step": step, "total_steps": 2} | data
        ledger.add_event(job_id, level="info", message="a step", type="metrics", data=report)
    folder.result.write_text('{"status": "succeeded", "trained_tokens": 7}')
    publishing.finish(job_id)
    publishing.finish(job_id)
    with ledger._database.reading() as session:
        job = session.query(Job).where(Job.id == job_id).one()
        file = session.query(File).one()
    assert (job.status, job.result_files, job.trained_tokens) == ("succeeded", [file.id], 7)
    assert (file.project_id, file.purpose) == (job.project_id, "fine-tune-results")
    content = (services.settings.files_dir / file.id).read_bytes()
    assert base64.b64decode(content) == b"step,train_loss,valid_loss\n1,0.5,\n2,,0.25\n"
    assert file.bytes == len(content)


def test_result_files_are_plain_where_the_operator_says_so(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    services.settings.result_files = "csv"
    ledger.add_event(
        job_id, level="info", message="a step", type="metrics", data={"step": 1, "train_loss": 0.5}
    )
    folder.result.write_text('{"status": "succeeded", "trained_tokens": 7}')
    publishing.finish(job_id)
    with ledger._database.reading() as session:
        file = session.query(File).one()
    assert (services.settings.files_dir / file.id).read_text() == "step,train_loss\n1,0.5\n"


def test_errors_survive_being_stored() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(JobFailedError("code", "message")))
    assert (error.code, str(error)) == ("code", "message")


def test_a_silent_executor_is_waited_for_while_events_are_read(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(training, "TOLERATED_SECONDS", 0.0)
    executor: Any = services.executor
    executor.silent = 3
    folder.emit("Step 1")
    write_json(folder.result, {"status": "succeeded"})
    assert training.watch(job_id) == ("trained", 0)
    told = messages(ledger, job_id)
    assert told.index("Step 1") < told.index("The training executor answers again")
    silence = "The cluster does not answer: refused. The job waits until it is back; nothing is lost"
    assert told.count(silence) == 1


def test_a_short_silence_is_nobodys_business(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "POLL_SECONDS", 0.01)
    executor: Any = services.executor
    executor.silent = 2
    write_json(folder.result, {"status": "succeeded"})
    assert training.watch(job_id) == ("trained", 0)
    assert not [message for message in messages(ledger, job_id) if "answer" in message]


@pytest.mark.parametrize(
    ("facts", "peak"),
    [
        ({"measured": {"peak_bytes": 5 * 2**30}}, 5 * 2**30),
        ({"measured": {"peak_bytes": -1}}, None),
        ({"measured": {"peak_bytes": "all"}}, None),
        ({"measured": None}, None),
        ({}, None),
    ],
)
def test_a_job_that_ends_however_it_does_has_the_peak_that_its_run_measured(
    ledger: JobLedger, folder: RunFolder, job_id: str, facts: dict[str, Any], peak: int | None
) -> None:
    write_json(folder.facts, facts)
    write_json(folder.result, {"status": "failed", "error": {"code": "no_luck", "message": "No luck."}})
    with pytest.raises(JobFailedError):
        training.watch.__wrapped__(job_id)  # type: ignore[attr-defined]
    with ledger.database.reading() as session:
        assert session.query(Job).where(Job.id == job_id).one().peak_bytes == peak


@pytest.mark.parametrize(("step", "outcome", "status"), [(4, "left", "paused"), (8, "killed", "running")])
def test_a_run_that_paused_at_its_sweeps_rung_pauses_the_job(
    services: StepServices,
    ledger: JobLedger,
    job_id: str,
    folder: RunFolder,
    step: int,
    outcome: str,
    status: str,
) -> None:
    with ledger._database.writing() as session:
        values = {"recipe": {"training": {"pause_at": 4}}}
        session.execute(update(Job).where(Job.id == job_id).values(values))
    written = folder.checkpoints / "aside"
    written.mkdir(parents=True)
    (written / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    seal(written, folder.checkpoints / f"checkpoint-{step}", {})
    write_json(folder.result, {"status": "paused", "steps": step})
    assert training.watch(job_id)[0] == outcome
    assert ledger.get(job_id).status == status
    told = "Training paused at step 4, where its sweep compares the jobs"
    assert (told in messages(ledger, job_id)) == (outcome == "left")
