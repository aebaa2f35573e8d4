"""Undocumented parts of DBOS and Ray that the server relies on exist and are called."""

import inspect
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from dbos import DBOS, _dbos, _sys_db

from alignkit_server import upstream


def test_dbos_recovers_the_workflows_of_the_executors_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(inspect.signature(DBOS._recover_pending_workflows).parameters) == ["executor_ids"]
    given: list[list[str]] = []
    monkeypatch.setattr(DBOS, "_recover_pending_workflows", given.append)
    upstream.recover_workflows(("a", "b"))
    assert given == [["a", "b"]]


def test_dbos_knows_its_running_workflows_and_recovers_one_of_an_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dbos._core import ActiveWorkflowById

    active = ActiveWorkflowById()
    active.add("a")
    given: list[object] = []
    database = SimpleNamespace(reenqueue_for_recovery=lambda *arguments: given.extend(arguments))
    instance = SimpleNamespace(_active_workflows_set=active, _sys_db=database)
    monkeypatch.setattr(_dbos, "_get_dbos_instance", lambda: instance)
    assert upstream.running_workflows() == {"a"}
    upstream.recover_workflow("b", "server")
    assert given[:2] == ["b", ["server"]]
    expected = ["self", "workflow_id", "executor_ids", "recovery_queue_name"]
    assert list(inspect.signature(_sys_db.SystemDatabase.reenqueue_for_recovery).parameters) == expected


def test_dbos_pauses_no_longer_than_it_is_told_between_two_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sys_db, "time", time)  # undone at the end
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    upstream.bound_retries(5.0)
    failures = [sqlite3.OperationalError("database is locked")] * 12

    @_sys_db.db_retry()
    def work() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert work() == "done"
    assert len(slept) == 12
    assert 3.0 < max(slept) <= 5.0
    assert _sys_db.time.time() > 0


def test_ray_names_a_job_s_actor_as_expected() -> None:
    common = pytest.importorskip("ray.dashboard.modules.job.common")
    name, namespace = upstream.supervisor("job-1")
    assert "job-1" in name
    assert namespace == common.SUPERVISOR_ACTOR_RAY_NAMESPACE
    manager = Path(common.__file__).with_name("job_manager.py").read_text(encoding="utf-8")
    for used in ("JOB_ACTOR_NAME_TEMPLATE.format(", "namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE"):
        assert used in manager


def test_ray_train_takes_a_function_its_configuration_and_its_nodes() -> None:
    pytest.importorskip("ray")
    found = inspect.signature(upstream.data_parallel_trainer()).parameters
    assert found.keys() >= {"train_loop_per_worker", "train_loop_config", "scaling_config", "run_config"}
