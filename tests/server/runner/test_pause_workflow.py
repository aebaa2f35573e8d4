"""Pause, resume and upgrade with the durable queue and real processes, on one slot; only training is a stand-in."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS

from alignkit_server.database import Database
from alignkit_server.executors.local import LocalExecutor
from alignkit_server.keys.service import issue_key
from alignkit_server.migrate import migrate
from alignkit_server.runner import dbos as dbos_runner
from alignkit_server.runner.dbos import DBOSRunner
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.step_services import StepServices
from alignkit_server.settings import Settings
from alignkit_server.tables import Job
from tests.server.runner.test_ledger import store_job
from tests.server.runner.test_workflow import FakeEngines

TRAINER = """
import json, os, signal, sys, time

def end(**result):
    open("new", "w").write(json.dumps(result)); os.replace("new", "result.json"); sys.exit(0)

def pause(*_):
    time.sleep(0.5)
    end(status="paused", steps=1)

signal.signal(signal.SIGTERM, pause)
open("runs", "a").write(" ".join(sys.argv[-2:]) + "\\n")
open("ready", "w").close()
deadline = time.monotonic() + 60
while not os.path.exists("go") and time.monotonic() < deadline:
    time.sleep(0.02)
end(status="failed", error={"code": "reached", "message": "the end"})
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[JobLedger]:
    settings = Settings(home=tmp_path)
    migrate(settings.sqlalchemy_url)
    database = Database(settings.sqlalchemy_url)
    with database.writing() as session:
        issue_key(session, "mine")
    yield JobLedger(database)
    database.close()


@contextmanager
def running(home: Path, ledger: JobLedger) -> Iterator[DBOSRunner]:
    """A server's queue, with one slot."""
    (home / "trainer.py").write_text(TRAINER)
    program = home / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {home / "trainer.py"} "$@"\n')
    program.chmod(0o755)
    engines: Any = FakeEngines()
    executor = LocalExecutor(grace_seconds=5, python=str(program))
    runner = DBOSRunner(StepServices(Settings(home=home), ledger, executor, engines, threading.Event()))
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


def new_job(ledger: JobLedger, runner: DBOSRunner) -> str:
    with ledger.database.writing() as session:
        job_id = store_job(session)
    runner.enqueue(job_id)
    return job_id


def set_status(ledger: JobLedger, job_id: str, status: str, *, attempt: int) -> None:
    """Change a job as the service does on a request."""
    with ledger.database.writing() as session:
        job = session.query(Job).where(Job.id == job_id).one()
        job.status, job.attempt = status, attempt
        job.turn = None if status == "queued" else job.turn


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_pause_frees_the_slot_and_a_resume_goes_on(tmp_path: Path, ledger: JobLedger) -> None:
    def status(job_id: str) -> str:
        return ledger.get(job_id).status

    def folder(job_id: str) -> Path:
        return tmp_path / "jobs" / job_id

    with running(tmp_path, ledger) as runner:
        first = new_job(ledger, runner)
        until((folder(first) / "ready").exists, "the first job trains")
        second = new_job(ledger, runner)
        set_status(ledger, first, "paused", attempt=1)
        until((folder(second) / "ready").exists, "the second job has the slot")
        set_status(ledger, first, "queued", attempt=2)
        (folder(second) / "go").touch()
        until(lambda: status(second) == "failed", "the second job ends")
        until(lambda: len(runs(folder(first))) == 2, "the first job goes on")
        set_status(ledger, first, "paused", attempt=2)
        set_status(ledger, first, "queued", attempt=3)  # resumed while it still saves
        until(lambda: len(runs(folder(first))) == 3, "the first job goes on again")
        set_status(ledger, first, "paused", attempt=3)
        until(lambda: not (folder(first) / "process.json").exists(), "the first job is paused")
    (folder(first) / "go").touch()
    set_status(ledger, first, "queued", attempt=4)
    with running(tmp_path, ledger):  # another server, which finds it waiting
        until(lambda: status(first) == "failed", "the first job ends")
    assert [words[-1] for words in runs(folder(first))] == ["recipe.yaml", "--resume", "--resume", "--resume"]


def runs(folder: Path) -> list[list[str]]:
    """The last words of each start's command line, without the folder."""
    lines = (folder / "runs").read_text().splitlines()
    return [[word.rpartition("/")[2] for word in line.split()] for line in lines]


def workflows() -> dict[str, str]:
    """Each workflow's status by its id."""
    return {found.workflow_id: found.status for found in DBOS.list_workflows(name="fine_tune")}


def test_the_workflow_of_an_older_version_is_cancelled_and_its_job_begun_again(
    tmp_path: Path, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(dbos_runner, "WORKFLOW_VERSION", "1")
        with running(tmp_path, ledger) as runner:
            job_id = new_job(ledger, runner)
            folder = tmp_path / "jobs" / job_id
            until((folder / "ready").exists, "the job trains")
            assert workflows() == {f"{job_id}-1-v1": "PENDING"}
    with running(tmp_path, ledger):
        version = dbos_runner.WORKFLOW_VERSION
        until(lambda: workflows().get(f"{job_id}-1-v{version}") == "PENDING", "the job is begun again")
        assert workflows()[f"{job_id}-1-v1"] == "CANCELLED"
        (folder / "go").touch()
        until(lambda: ledger.get(job_id).status == "failed", "the job ends")
        until(lambda: workflows()[f"{job_id}-1-v{version}"] == "SUCCESS", "its workflow ends")
    assert len(runs(folder)) == 1, "the run was found, not started again"
