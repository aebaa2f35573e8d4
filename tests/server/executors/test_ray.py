"""The Ray executor on a real Ray: a head and a node with one made-up GPU; only the training is a stand-in."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.errors import AlignkitError
from alignkit.run.folder import RunFolder
from alignkit_server.engines.process import free_port
from alignkit_server.executors.protocol import ExecutorUnavailableError
from alignkit_server.executors.ray import executor as module
from alignkit_server.executors.ray.executor import RayExecutor
from alignkit_server.executors.registry import executor_of
from alignkit_server.settings import RaySettings, Settings
from tests.server.executors.ray_cluster import Cluster, stub_python, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.add_node(gpus=1)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def executor(cluster: Cluster, tmp_path: Path) -> RayExecutor:
    return new_executor(cluster, tmp_path)


def new_executor(cluster: Cluster, tmp_path: Path, **options: object) -> RayExecutor:
    settings = RaySettings(address=cluster.address, python=stub_python(tmp_path), **options)  # type: ignore[arg-type]
    return RayExecutor(settings, grace_seconds=5)


def new_folder(tmp_path: Path, name: str, step_seconds: float = 0.15) -> Path:
    folder = tmp_path / f"{tmp_path.name}-{name}"  # one cluster knows the jobs of all tests
    folder.mkdir()
    (folder / "step_seconds").write_text(str(step_seconds))
    return folder


def starts(folder: Path) -> list[str]:
    """How each run of the folder began."""
    try:
        return [line.split()[1] for line in (folder / "starts").read_text().splitlines()]
    except FileNotFoundError:
        return []


def steps(folder: Path) -> list[int]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["data"]["step"] for event in events if event["type"] == "metrics"]


@pytest.mark.slow
def test_runs_wait_for_the_gpu_and_are_started_once(
    cluster: Cluster, executor: RayExecutor, tmp_path: Path
) -> None:
    first, second = new_folder(tmp_path, "a", 0.4), new_folder(tmp_path, "b")
    assert executor.capacity() == 2, "one that runs and one that waits"
    executor.start(first, resume=False)
    until(lambda: starts(first), "the first runs")
    executor.start(second, resume=False)
    other = new_executor(cluster, tmp_path)  # another server
    for folder in (first, second):
        other.start(folder, resume=False)
        assert other.running(folder)
    assert cluster.jobs()[f"{second.name}-1"] == "PENDING"
    assert starts(second) == []
    until(lambda: not executor.running(first), "the first ends")
    until(lambda: not executor.running(second), "the second ends")
    for folder in (first, second):
        assert starts(folder) == ["begin"]
        assert (RunFolder(folder).read_result() or {})["status"] == "succeeded"
        assert not list((folder / "ray").glob("alive-*"))
        assert not other.running(folder)


@pytest.mark.slow
def test_a_pending_run_leaves_the_queue(cluster: Cluster, executor: RayExecutor, tmp_path: Path) -> None:
    running, stopped, paused = (new_folder(tmp_path, name, 5) for name in ("running", "stopped", "paused"))
    for folder in (running, stopped, paused):
        executor.start(folder, resume=False)
    until(lambda: starts(running), "one runs")
    executor.stop(stopped)
    assert not executor.running(stopped)
    executor.interrupt(paused)
    until(lambda: not executor.running(paused), "the paused one ends")
    assert {cluster.jobs()[f"{folder.name}-1"] for folder in (stopped, paused)} == {"FAILED"}
    executor.start(paused, resume=True)
    assert executor.running(paused)
    executor.stop(running)
    assert not executor.running(running)
    assert cluster.jobs()[f"{running.name}-1"] == "STOPPED"
    until(lambda: starts(paused), "the resumed one runs")
    executor.stop(paused)
    assert starts(stopped) == []
    assert starts(running) == ["begin"]
    assert starts(paused) == ["resume"]


@pytest.mark.slow
def test_a_paused_run_saves_and_goes_on(executor: RayExecutor, tmp_path: Path) -> None:
    folder = new_folder(tmp_path, "a", 0.5)
    executor.start(folder, resume=False)
    until(lambda: (folder / "events.jsonl").exists() and steps(folder), "it trains")
    executor.interrupt(folder)
    until(lambda: not executor.running(folder), "it pauses")
    result = RunFolder(folder).read_result() or {}
    assert result["status"] == "paused"
    executor.start(folder, resume=True)
    until(lambda: not executor.running(folder), "it ends")
    assert (RunFolder(folder).read_result() or {})["status"] == "succeeded"
    assert starts(folder) == ["begin", "resume"]
    assert steps(folder) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_what_ray_knows_of_a_failure_is_in_the_log(executor: RayExecutor, tmp_path: Path) -> None:
    folder = new_folder(tmp_path, "a")
    executor.start(folder, resume=False)
    (folder / "ray.json").rename(folder / "elsewhere.json")  # as if the node did not see the folder
    until(lambda: executor._jobs.find(f"{folder.name}-1").status == "FAILED", "it fails")  # type: ignore[union-attr]
    (folder / "elsewhere.json").rename(folder / "ray.json")
    assert not executor.running(folder)
    assert "must be on storage that all nodes mount" in (folder / "train.log").read_text()


@pytest.mark.slow
def test_more_gpus_than_any_node_has_are_refused_or_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    ray = RaySettings(address=cluster.address, gpus=8, waiting=0)
    with pytest.raises(AlignkitError, match="a job needs 8 GPUs per node, and the largest node has 1"):
        executor_of(Settings(home=tmp_path, executor="ray", ray=ray))
    waiting = RayExecutor.connect(Settings(home=tmp_path, ray=ray.model_copy(update={"waiting": 1})))
    assert waiting.capacity() == 1


def test_an_address_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    address = f"http://127.0.0.1:{free_port()}"
    settings = Settings(home=tmp_path, executor="ray", ray=RaySettings(address=address))
    with pytest.raises(AlignkitError, match=f"The Ray cluster at {address} does not answer: .*refused"):
        executor_of(settings)


def test_a_cluster_that_falls_silent_is_told_of_and_asked_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        executor = RayExecutor(RaySettings(address=address, timeout_seconds=0.2), grace_seconds=1)
        folder = new_folder(tmp_path, "a")
        assert executor.capacity() == 0
        assert not executor.running(folder), "what was never started needs no cluster"
        for _ in range(2):
            with pytest.raises(ExecutorUnavailableError, match="timed out"):
                executor.start(folder, resume=False)
            with pytest.raises(ExecutorUnavailableError, match="timed out"):
                executor.running(folder)
