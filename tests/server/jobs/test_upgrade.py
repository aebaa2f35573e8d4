"""An upgrade whose workflow differs: what the older version left is dropped, and its jobs are begun again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dbos import DBOS

from server.jobs import dbos_runner
from server.jobs.ledger import JobLedger
from tests.server.jobs import test_pause_workflow as queue
from tests.server.jobs.test_pause_workflow import new_job, running, runs, until


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[JobLedger]:
    yield from queue.ledger.__wrapped__(tmp_path)  # type: ignore[attr-defined]


def workflows() -> dict[str, str]:
    """Each workflow's status by its id."""
    return {found.workflow_id: found.status for found in DBOS.list_workflows(queue_name=dbos_runner.QUEUE)}


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
