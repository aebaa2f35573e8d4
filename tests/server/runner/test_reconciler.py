"""Workflows that lost their thread, and jobs that lost their workflow, under a server that lives."""

from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS

from alignkit_server.database import Database
from alignkit_server.outages import Detached
from alignkit_server.runner import reconciler, workflow
from alignkit_server.runner.ledger import JobLedger
from tests.server.runner.test_scheduler import queue, runner_of, sqlite
from tests.server.runner.test_workflow import FakeExecutor
from tests.server.support import wait_until

__all__ = ["sqlite"]


def test_what_lost_its_thread_or_its_workflow_is_taken_up(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three jobs: the thread of one ends without an outcome, the workflow of one fails, and one never starts."""
    deserted, _, forgotten = jobs = queue(sqlite, "a", 3)
    ledger, real, lost = JobLedger(sqlite), workflow.train, set(jobs)

    def train(job_id: str, attempt: int) -> bool:
        if job_id in lost:
            lost.discard(job_id)
            ledger.transition(job_id, "running", only_from=("queued",))
            raise Detached if job_id == deserted else SystemError
        return real(job_id, attempt)

    def fail(job_id: str, code: str, message: str, _log: str = "") -> None:
        if code == "internal_error":
            raise RuntimeError("an outcome that nobody foresaw")
        ledger.transition(job_id, "failed", only_from=("running",))

    monkeypatch.setattr(reconciler, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(workflow, "train", train)
    monkeypatch.setattr(workflow, "fail", fail)
    runner = runner_of(tmp_path, sqlite, FakeExecutor(), training_slots=3)
    enqueue = DBOS.enqueue_workflow

    def forgetful(name: str, work: Any, job_id: str, *rest: Any) -> Any:
        if job_id == forgotten and job_id in lost:
            lost.discard(job_id)
            ledger.transition(job_id, "running", only_from=("queued",))
            return None
        return enqueue(name, work, job_id, *rest)

    monkeypatch.setattr(DBOS, "enqueue_workflow", forgetful)
    runner.start()
    try:
        wait_until(lambda: ledger.active_jobs() == [], 60)
    finally:
        runner.stop()
    assert [ledger.get(job_id).status for job_id in jobs] == ["failed"] * 3, "their trainers died at once"
