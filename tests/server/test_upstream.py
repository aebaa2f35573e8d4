"""What the server relies on in DBOS and Ray without a word in their documentation: that it is there, and used so."""

import inspect
from pathlib import Path

import pytest
from dbos import DBOS

from alignkit_server import upstream


def test_dbos_recovers_the_workflows_of_the_executors_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(inspect.signature(DBOS._recover_pending_workflows).parameters) == ["executor_ids"]
    given: list[list[str]] = []
    monkeypatch.setattr(DBOS, "_recover_pending_workflows", given.append)
    upstream.recover_workflows(("a", "b"))
    assert given == [["a", "b"]]


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
