"""Outages of what the service stands on, under jobs that wait, train and are published: each succeeds once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.disk import full
from tests.server.postgres import Postgres
from tests.server.runner.faults import killed, locked
from tests.server.runner.killing import Rig

AFTERWARDS_SECONDS = 30
"""For the rest of every job once the outage is over."""
NewRig = Callable[..., Rig]


def jobs_at_every_moment(rig: Rig) -> list[str]:
    """A job that is published, one that trains and one that waits, on two slots."""
    seconds = rig.home / "jobs" / "step_seconds"
    for server in rig.servers:
        rig.wait(server.ready, "every server answers")
    seconds.write_text("0.7")
    jobs = rig.submit(1)
    rig.wait(lambda: steps(rig, jobs[0]) >= 3, "the first job is half done")
    jobs += rig.submit(2)
    rig.wait(lambda: steps(rig, jobs[1]) >= 1, "the second job trains")
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
    rig.stop()


@pytest.mark.slow
def test_postgres_is_killed_for_seconds(new_rig: NewRig, database: Postgres) -> None:
    rig = new_rig(servers=2, database_url=database.url, training_slots="2")
    outlast(rig, jobs_at_every_moment(rig), killed(database), 3)


def test_sqlite_is_locked_for_longer_than_anybody_waits(new_rig: NewRig) -> None:
    rig = new_rig(training_slots="2", stub={"STUB_BUSY_SECONDS": "0.3"})
    outlast(rig, jobs_at_every_moment(rig), locked(rig.home / "alignkit.sqlite"), 3)


@pytest.mark.slow
def test_the_disk_is_full_for_seconds(new_rig: NewRig, small_disk: Path) -> None:
    rig = new_rig(small_disk / "home", training_slots="2")
    outlast(rig, jobs_at_every_moment(rig), full(small_disk), 4, once=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("seconds", [15, 120])
def test_postgres_is_killed(new_rig: NewRig, database: Postgres, seconds: int, servers: int) -> None:
    rig = new_rig(servers=servers, database_url=database.url, training_slots="2")
    outlast(rig, jobs_at_every_moment(rig), killed(database), seconds)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("servers", [1, 2])
def test_the_disk_is_full_for_a_minute(new_rig: NewRig, small_disk: Path, servers: int) -> None:
    rig = new_rig(small_disk / "home", servers=servers, training_slots="2")
    outlast(rig, jobs_at_every_moment(rig), full(small_disk), 60, once=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("which", [("alignkit", "dbos"), ("alignkit",), ("dbos",)], ids="+".join)
def test_sqlite_is_locked_for_a_minute(new_rig: NewRig, which: tuple[str, ...], servers: int) -> None:
    rig = new_rig(servers=servers, training_slots="2")
    jobs = jobs_at_every_moment(rig)
    outlast(rig, jobs, locked(*(rig.home / f"{name}.sqlite" for name in which)), 60)
