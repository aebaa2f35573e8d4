"""Outages of what the service stands on, under jobs that wait, train and are published: each succeeds once."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.disk import full
from tests.server.postgres import Postgres, postgres_server
from tests.server.runner.killing import Rig

MOMENTS = ("queued", "training", "publishing")
AFTERWARDS_SECONDS = 150
"""For the rest of every job once the outage is over, with a start of an engine among it, on a busy machine."""
Outage = Callable[[], Any]
NewRig = Callable[..., Rig]


@pytest.fixture
def new_rig(tmp_path: Path) -> Iterator[NewRig]:
    """Makes the test's rig; whatever is left of it at the end is ended."""
    made: list[Rig] = []

    def make(home: Path = tmp_path / "home", **options: Any) -> Rig:
        made.append(Rig(home, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.clean_up()


@pytest.fixture
def database() -> Iterator[Postgres]:
    """A server of its own, since it will be killed."""
    with postgres_server() as server:
        yield server


@contextmanager
def killed(server: Postgres) -> Iterator[None]:
    """Postgres is away meanwhile."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def locked(*files: Path) -> Iterator[None]:
    """Another process than the server's, this one, writes into the databases meanwhile."""
    with ExitStack() as held:
        for file in files:
            connection = sqlite3.connect(file, isolation_level=None, timeout=60)
            held.callback(connection.close)
            connection.execute("BEGIN IMMEDIATE")
        yield


def jobs_at(rig: Rig, *moments: str) -> list[str]:
    """Jobs with one at each of the moments; the first one that trains ends first."""
    seconds = rig.home / "jobs" / "step_seconds"
    for server in rig.servers:
        rig.wait(server.ready, "every server answers")
    seconds.write_text("0.7")
    jobs = rig.submit(1)
    rig.wait(lambda: steps(rig, jobs[0]) >= 3, "the first job is half done")
    if "training" in moments or "queued" in moments:
        jobs += rig.submit(2 if "queued" in moments else 1)
        rig.wait(lambda: steps(rig, jobs[1]) >= 1, "the second job trains")
    if "publishing" in moments:
        rig.wait((rig.home / "jobs" / jobs[0] / "result.json").exists, "the first job is trained")
    return jobs


def steps(rig: Rig, job_id: str) -> int:
    """How many steps the trainer of the job has reported."""
    events = rig.home / "jobs" / job_id / "events.jsonl"
    return events.read_text().count('"metrics"') if events.exists() else 0


def outlast(rig: Rig, jobs: list[str], outage: Any, seconds: float, *, once: bool = True) -> None:
    """Have the outage, and see every job through; `once` says whether no step is trained again."""
    with outage:
        time.sleep(seconds)
    rig.finish(jobs, AFTERWARDS_SECONDS)
    rig.check(jobs)
    client = rig.client()
    for job_id in jobs:
        events = client.fine_tuning.jobs.list_events(job_id, limit=100).data
        reported = [event.data["step"] for event in events[::-1] if event.type == "metrics"]
        assert (reported if once else sorted(set(reported))) == [1, 2, 3, 4, 5, 6]
        trained = rig.home / "jobs" / job_id / "adapter" / "adapter_model.safetensors"
        name = client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model
        served = rig.home / "adapters" / "tiny" / str(name) / "adapter_model.safetensors"
        assert served.read_bytes() == trained.read_bytes()
    rig.stop()


@pytest.mark.slow
def test_postgres_is_killed_for_seconds(new_rig: NewRig, database: Postgres) -> None:
    rig = new_rig(servers=2, database_url=database.url, training_slots="2")
    outlast(rig, jobs_at(rig, *MOMENTS), killed(database), 3)


def test_sqlite_is_locked_for_longer_than_anybody_waits(new_rig: NewRig) -> None:
    rig = new_rig(training_slots="2", stub={"STUB_BUSY_SECONDS": "0.3"})
    outlast(rig, jobs_at(rig, *MOMENTS), locked(rig.home / "alignkit.sqlite"), 3)


@pytest.mark.slow
def test_the_disk_is_full_for_seconds(new_rig: NewRig, small_disk: Path) -> None:
    rig = new_rig(small_disk / "home", training_slots="2")
    outlast(rig, jobs_at(rig, *MOMENTS), full(small_disk), 4, once=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("seconds", [15, 120])
def test_postgres_is_killed(
    new_rig: NewRig, database: Postgres, seconds: int, moment: str, servers: int
) -> None:
    rig = new_rig(servers=servers, database_url=database.url, training_slots="2")
    outlast(rig, jobs_at(rig, moment), killed(database), seconds)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("which", ["alignkit", "dbos", "both"])
def test_sqlite_is_locked_for_a_minute(new_rig: NewRig, which: str, moment: str, servers: int) -> None:
    rig = new_rig(servers=servers, training_slots="2")
    jobs = jobs_at(rig, moment)
    names = ["alignkit", "dbos"] if which == "both" else [which]
    outlast(rig, jobs, locked(*(rig.home / f"{name}.sqlite" for name in names)), 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_disk_is_full_for_a_minute(new_rig: NewRig, small_disk: Path, moment: str, servers: int) -> None:
    rig = new_rig(small_disk / "home", servers=servers, training_slots="2")
    outlast(rig, jobs_at(rig, moment), full(small_disk), 60, once=False)
