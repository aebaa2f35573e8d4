"""Runs of evals with DBOS itself, on SQLite: a run that a stopped server left is continued by the next."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from alignkit_server import outages
from alignkit_server.database import Database
from alignkit_server.evals import running
from alignkit_server.ids import new_id
from alignkit_server.keys.service import issue_key
from alignkit_server.migrate import migrate
from alignkit_server.outages import Detached
from alignkit_server.runner import dbos
from alignkit_server.runner.dbos import DBOSRunner
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.step_services import StepServices
from alignkit_server.settings import Settings
from alignkit_server.tables import Eval, EvalItem, EvalRun, Project
from tests.server.evals.conftest import EQUAL, SCHEMA, reply, rows, sampled
from tests.server.runner.test_workflow import FakeEngines, FakeExecutor
from tests.server.support import wait_until


class Models:
    """Answers two requests; every further one waits until the server stops, unless `free`."""

    def __init__(self, *, free: bool) -> None:
        self.asked: list[str] = []
        self._free = free

    def ask(self, project_id: str, body: dict[str, Any], stopping: threading.Event) -> dict[str, Any]:
        self.asked.append(body["messages"][0]["content"])
        if not self._free and len(self.asked) > 2:
            stopping.wait(60)
            raise Detached
        answer: dict[str, Any] = reply("yes")[1]
        return answer


@contextmanager
def server(settings: Settings, database: Database, models: Models) -> Iterator[DBOSRunner]:
    engines: Any = FakeEngines()
    services = StepServices(settings, JobLedger(database), FakeExecutor(), engines, threading.Event())
    runner = DBOSRunner(services, models)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


def store_run(database: Database, count: int) -> str:
    """A run of `count` rows that samples a model, and is queued."""
    with database.writing() as session:
        project_id = session.scalars(select(Project.id)).one()
        owned = {"project_id": project_id, "created_at": 1}
        config = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
        found = Eval(
            id=new_id("eval_"), name="x", data_source_config=config, testing_criteria=[EQUAL], **owned
        )
        tally = {"passed": 0, "failed": 0, "errored": 0, "criteria": {}, "models": {}}
        run = EvalRun(
            id=new_id("evalrun_"),
            eval_id=found.id,
            name="x",
            status="queued",
            model="m",
            data_source=sampled([]),
            total=count,
            tally=tally,
            disk_bytes=0,
            **owned,
        )
        session.add(found)
        session.flush()
        session.add(run)
        session.flush()
        for number, row in enumerate(rows(*["yes"] * count)):
            item = EvalItem(
                id=new_id("outputitem_"), run_id=run.id, number=number, status="waiting", results=[], **owned
            )
            item.item = row["item"]
            session.add(item)
        return run.id


class Outage(Models):
    """Answers, once its database has not answered so many times."""

    def __init__(self, times: int) -> None:
        super().__init__(free=True)
        self.left = times

    def ask(self, project_id: str, body: dict[str, Any], stopping: threading.Event) -> dict[str, Any]:
        if self.left:
            self.left -= 1
            raise OperationalError("SELECT 1", {}, psycopg.OperationalError("server closed the connection"))
        return super().ask(project_id, body, stopping)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path)
    settings.jobs_dir.mkdir()
    migrate(settings.sqlalchemy_url)
    return settings


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.sqlalchemy_url)
    with database.writing() as session:
        issue_key(session, "mine")
    yield database
    database.close()


def found(database: Database, run_id: str) -> EvalRun:
    with database.reading() as session:
        return session.scalars(select(EvalRun).where(EvalRun.id == run_id)).one()


def test_an_outage_of_the_database_ends_no_run(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0.01)
    run_id, models = store_run(database, 2), Outage(3)
    with server(settings, database, models):
        wait_until(lambda: found(database, run_id).status == "completed")
    assert (found(database, run_id).tally["passed"], models.left) == (2, 0)


def test_a_run_that_an_outage_kept_from_the_queue_is_taken_up(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbos, "LATE_SECONDS", 0.1)
    with server(settings, database, Models(free=True)):
        run_id = store_run(database, 1)
        wait_until(lambda: found(database, run_id).status == "completed")


def test_the_next_server_grades_the_rows_that_the_last_one_left(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BATCH", 2)
    run_id = store_run(database, 4)

    def run() -> EvalRun:
        return found(database, run_id)

    first = Models(free=False)
    with server(settings, database, first):
        wait_until(lambda: len(first.asked) > 2)
    assert (run().status, run().tally["passed"]) == ("in_progress", 2)
    second = Models(free=True)
    with server(settings, database, second) as runner:
        wait_until(lambda: run().status == "completed")
        runner.evaluate(run_id)  # a second time changes nothing
    assert run().tally["passed"] == 4
    assert sorted(second.asked) == ["q2?", "q3?"]
