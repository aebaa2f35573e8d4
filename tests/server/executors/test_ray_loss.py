"""The whole service on a real Ray of two nodes that loses one of them, its head, or the service; and Ray Train."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit.run.checkpoints import read_manifest
from alignkit.run.folder import RunFolder
from alignkit_server.executors.ray.executor import RayExecutor
from alignkit_server.settings import RaySettings
from tests.distributed.launching import build_inputs, write_recipe
from tests.server.executors.ray_cluster import Cluster, stub_python, until
from tests.server.runner.killing import Rig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


HELD = 2
"""The step, with a checkpoint, after which every run waits until it is let go."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(gpus=1)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def rig(cluster: Cluster, tmp_path: Path) -> Iterator[Rig]:
    """The service with four slots, of which the cluster takes two running jobs and one waiting job."""
    options = {"executor": "ray", "ray__address": cluster.address, "ray__python": stub_python(tmp_path)}
    rig = Rig(tmp_path / "home", training_slots="4", **options)
    try:
        (rig.home / "jobs").mkdir()
        (rig.home / "jobs" / "hold").write_text(str(HELD + 1))
        yield rig
    finally:
        rig.clean_up()


def steps(rig: Rig, job: str) -> int:
    """How many steps the job's runs have reported."""
    try:
        lines = (rig.home / "jobs" / job / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(json.loads(line)["type"] == "metrics" for line in lines)


def two_at_once(rig: Rig, jobs: list[str]) -> tuple[list[str], list[str]]:
    """The two jobs that train, once they do, and the others: Ray says which, of those that came together."""

    def training() -> list[str] | None:
        found = [job for job in jobs if steps(rig, job) == HELD]
        return found if len(found) == 2 else None

    first: list[str] = rig.wait(training, "two jobs train at once")
    others = [job for job in jobs if job not in first]
    assert [steps(rig, job) for job in others] == [0] * len(others)
    return first, others


def let_go(rig: Rig) -> None:
    (rig.home / "jobs" / "hold").unlink()


def messages(rig: Rig, job: str) -> list[str]:
    return [event.message for event in rig.client().fine_tuning.jobs.list_events(job, limit=100)]


def test_jobs_of_a_lost_node_go_on_elsewhere(cluster: Cluster, rig: Rig) -> None:
    jobs = rig.submit(4)
    two_at_once(rig, jobs)
    assert sum(status in {"PENDING", "RUNNING"} for status in cluster.jobs().values()) <= 3
    cluster.kill_node(cluster.nodes[0])
    let_go(rig)
    rig.finish(jobs)
    rig.check(jobs)
    told = [message for job in jobs for message in messages(rig, job)]
    assert sum(f"resumes from the checkpoint at step {HELD}" in message for message in told) == 1
    rig.stop()


def test_a_head_that_is_started_again_and_a_killed_service_lose_nothing(cluster: Cluster, rig: Rig) -> None:
    jobs = rig.submit(3)
    training, _ = two_at_once(rig, jobs)
    cluster.head.kill()
    for job in training:
        rig.wait(lambda job=job: "does not answer" in str(messages(rig, job)), "the job tells of it")
    for node in cluster.nodes:
        node.process.wait(timeout=120)  # without a head they end themselves
    cluster.nodes.clear()
    cluster.start_head()
    rig.kill("server", random.Random(0))
    for _ in range(2):
        cluster.add_node(gpus=1)
    let_go(rig)
    rig.finish(jobs)
    rig.check(jobs)
    for job in training:
        assert any(
            f"resumes from the checkpoint at step {HELD}" in message for message in messages(rig, job)
        ), messages(rig, job)
    rig.stop()


def test_jobs_are_paused_and_cancelled_in_every_state(cluster: Cluster, rig: Rig) -> None:
    jobs = rig.submit(4)
    (running, other), rest = two_at_once(rig, jobs)

    def in_ray(job: str) -> str | None:
        return cluster.jobs().get(f"{job}-1")

    pending = rig.wait(
        lambda: next((job for job in rest if in_ray(job) == "PENDING"), None), "Ray queues one"
    )
    (waiting,) = set(rest) - {pending}
    assert in_ray(waiting) is None
    client: Any = rig.client()
    client.fine_tuning.jobs.pause(pending)
    rig.wait(lambda: in_ray(pending) == "FAILED", "it leaves the queue")
    rig.wait(lambda: in_ray(waiting) == "PENDING", "the fourth takes its place")
    client.fine_tuning.jobs.cancel(waiting)
    rig.wait(lambda: in_ray(waiting) == "FAILED", "it leaves the queue")
    client.fine_tuning.jobs.pause(running)
    rig.wait(
        lambda: (RunFolder(rig.home / "jobs" / running).read_result() or {}).get("status") == "paused",
        "paused",
    )
    client.fine_tuning.jobs.cancel(other)
    rig.wait(lambda: in_ray(other) == "STOPPED", "the running one is ended")
    let_go(rig)
    for job in (pending, running):
        client.fine_tuning.jobs.resume(job)
    rig.finish(jobs)
    rig.check([pending, running])
    assert not (rig.home / "jobs" / waiting / "starts").exists()
    rig.stop()


def test_ray_train_pauses_resumes_and_outlives_a_node(cluster: Cluster, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    folder = RunFolder(tmp_path / "several")
    recipe = write_recipe(build_inputs(inputs), folder.path, "f_dpo", max_steps=60, save_steps=5)
    folder.path.mkdir()
    recipe.rename(folder.recipe)
    settings = RaySettings(address=cluster.address, python=sys.executable, nodes=2)
    executor = RayExecutor(settings, grace_seconds=20)
    assert executor.capacity() == 2, "one run on both nodes, and one that waits"

    def ended() -> bool:
        return not executor.running(folder.path)

    executor.start(folder.path, resume=False)
    until(lambda: folder.last_checkpoint() or ended(), "a checkpoint is there", 240)
    checkpoint = folder.last_checkpoint()
    assert checkpoint, folder.log_tail()
    assert read_manifest(checkpoint)["processes"] == 2
    executor.interrupt(folder.path)
    until(ended, "it pauses", 60)
    paused = folder.read_result() or {}
    assert paused.get("status") == "paused", folder.log_tail()

    executor.start(folder.path, resume=True)
    until(lambda: _last_step(folder) > paused["steps"] + 5 or ended(), "it goes on", 240)
    cluster.kill_node(cluster.nodes[1])
    until(ended, "Ray sees it", 120)
    assert folder.read_result() is None
    cluster.add_node(gpus=1)
    executor.start(folder.path, resume=True)
    until(ended, "it ends", 300)
    assert (folder.read_result() or {}).get("status") == "succeeded", folder.log_tail()
    assert folder.adapter.is_dir()
    assert not list(folder.path.glob("repeat-*"))


def _last_step(folder: RunFolder) -> int:
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return max((event["data"].get("step", 0) for event in events), default=0)
