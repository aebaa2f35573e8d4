"""The workflow's record: what is said twice counts once, and of two changes of status one wins."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.ids import JOB, new_id
from alignkit_server.keys.service import issue_key
from alignkit_server.migrate import migrate
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.tables import Checkpoint, Event, FineTunedModel, Job, Project

THREADS = 8


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def ledger(database: Database) -> JobLedger:
    return JobLedger(database)


@pytest.fixture
def job_id(database: Database) -> str:
    with database.writing() as session:
        issue_key(session, "mine")
        return store_job(session)


def store_job(session: Session) -> str:
    project = session.scalars(select(Project)).one()
    job = Job(
        id=new_id(JOB),
        project_id=project.id,
        created_at=now(),
        status="queued",
        base_model="tiny",
        training_file="file-a",
        seed=1,
        method_type="f_dpo",
        hyperparameters={},
        recipe={"seed": 1},
        result_files=[],
    )
    session.add(job)
    return job.id


def at_once(call: Any) -> list[Any]:
    """The results of calling it from several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, range(THREADS)))


def rows(database: Database, table: Any) -> list[Any]:
    with database.reading() as session:
        return list(session.scalars(select(table).order_by(table.seq)))


def test_a_job_as_the_workflow_sees_it(ledger: JobLedger, job_id: str) -> None:
    job = ledger.get(job_id)
    assert (job.id, job.project_name, job.status) == (job_id, "mine", "queued")
    assert (job.suffix, job.validation_file, job.recipe) == (None, None, {"seed": 1})
    with pytest.raises(LookupError):
        ledger.get("ftjob-unknown")


def test_one_of_many_transitions_wins(ledger: JobLedger, job_id: str) -> None:
    won = at_once(lambda n: ledger.transition(job_id, "running", only_from=("queued",), started_at=n))
    assert sorted(won) == [False] * (THREADS - 1) + [True]
    won = at_once(
        lambda n: ledger.transition(
            job_id, ("succeeded", "cancelled")[n % 2], only_from=["running"], finished_at=n
        )
    )
    assert sum(won) == 1
    expected = ("succeeded", "cancelled")[won.index(True) % 2]
    assert ledger.get(job_id).status == expected
    assert not ledger.transition("ftjob-unknown", "running", only_from=("queued",))


def test_fields_are_set_with_the_status_or_alone(database: Database, ledger: JobLedger, job_id: str) -> None:
    error = {"code": "c", "message": "m", "param": None}
    assert ledger.transition(
        job_id, "failed", only_from=("queued",), error=error, finished_at=5, estimated_finish=None
    )
    ledger.set_fields(job_id, trained_tokens=7, result_files=["file-r"], fine_tuned_model="ft:x")
    job = rows(database, Job)[0]
    assert (job.status, job.error, job.finished_at, job.trained_tokens) == ("failed", error, 5, 7)
    assert (job.result_files, ledger.get(job_id).fine_tuned_model) == (["file-r"], "ft:x")
    for call in (
        lambda: ledger.set_fields(job_id, status="queued"),
        lambda: ledger.set_fields(job_id, colour=1),
    ):
        with pytest.raises(TypeError, match="expected only error, "):
            call()


def test_a_line_of_the_run_is_stored_once(database: Database, ledger: JobLedger, job_id: str) -> None:
    assert ledger.source_lines(job_id) == 0
    for line in range(3):
        at_once(
            lambda _, line=line: ledger.add_event(job_id, level="info", message=f"{line}", source_line=line)
        )
        assert ledger.source_lines(job_id) == line + 1
    at_once(lambda _: ledger.add_event(job_id, level="info", message="no line", created_at=5))
    events = rows(database, Event)
    assert [event.message for event in events] == ["0", "1", "2"] + ["no line"] * THREADS
    assert events[-1].created_at == 5
    assert len({event.id for event in events}) == len(events)
    with pytest.raises(LookupError):
        ledger.add_event("ftjob-unknown", level="info", message="?")


def test_the_event_of_a_jobs_end_is_its_last(database: Database, ledger: JobLedger, job_id: str) -> None:
    def report(number: int) -> None:
        if number == THREADS // 2:
            assert ledger.transition(job_id, "failed", only_from=("queued",), events=[("error", "the end")])
        ledger.add_event(job_id, level="info", message=f"{number}")

    at_once(report)
    ledger.add_event(job_id, level="info", message="late", once="late")
    assert rows(database, Event)[-1].message == "the end"


def test_an_event_is_stored_whatever_a_training_log_holds(
    database: Database, ledger: JobLedger, job_id: str
) -> None:
    ledger.add_event(job_id, level="error", message="a\x00b\ud800é", data={"é": "\x00\udfff"})
    event = rows(database, Event)[0]
    assert (event.message, event.data) == ("ab?é", {"é": "\x00?"})


def test_a_checkpoint_is_added_once_and_completed(database: Database, ledger: JobLedger, job_id: str) -> None:
    at_once(
        lambda _: ledger.add_checkpoint(
            job_id, step=5, model_name=None, metrics={"train_loss": 1.0}, path="c/5"
        )
    )
    ledger.add_checkpoint(job_id, step=5, model_name="ft:x:ckpt-step-5", metrics={}, path="c/5")
    ledger.add_checkpoint(job_id, step=5, model_name=None, metrics={"train_loss": 1.0}, path="c/5")
    checkpoint = rows(database, Checkpoint)
    assert len(checkpoint) == 1
    assert checkpoint[0].model_name == "ft:x:ckpt-step-5"
    assert checkpoint[0].metrics == {"train_loss": 1.0}


def test_a_model_is_added_once(database: Database, ledger: JobLedger, job_id: str) -> None:
    at_once(lambda _: ledger.add_model(job_id, name="ft:x", base_model="tiny", kind="adapter", path="p"))
    ledger.add_model(job_id, name="ft:x:ckpt-step-5", base_model="tiny", kind="adapter", path="p", step=5)
    assert [(model.name, model.step) for model in rows(database, FineTunedModel)] == [
        ("ft:x", None),
        ("ft:x:ckpt-step-5", 5),
    ]


def test_unfinished_jobs_come_oldest_first(database: Database, ledger: JobLedger, job_id: str) -> None:
    with database.writing() as session:
        others = [store_job(session) for _ in range(3)]
    ledger.transition(others[0], "failed", only_from=("queued",))
    ledger.transition(others[1], "running", only_from=("queued",))
    assert ledger.active_jobs() == [job_id, others[1], others[2]]


def test_writers_wait_for_a_writer_and_readers_do_not(
    database: Database, ledger: JobLedger, job_id: str, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "test.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ledger.transition, job_id, "running", only_from=("queued",))
        assert ledger.get(job_id).status == "queued"
        assert not waiting.done()
        other.execute("COMMIT")
        assert waiting.result(timeout=10)
    other.close()
