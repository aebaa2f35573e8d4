"""A job is charged for the time it ran, over all attempts, but not for waits and pauses."""

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import update

from alignkit_server.database import Database
from alignkit_server.executors.registry import gpus_of
from alignkit_server.keys.service import issue_key
from alignkit_server.limits.repository import UsageRepository
from alignkit_server.migrate import migrate
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.settings import Settings
from alignkit_server.tables import Job
from tests.server.runner.test_ledger import store_job
from tests.server.support import Running, create_job


class Clock:
    """The time of jobs, set by hand."""

    time = 1000

    def __call__(self) -> int:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("alignkit_server.jobs.repository", "alignkit_server.limits.repository"):
        monkeypatch.setattr(f"{module}.now", clock)
    return clock


@pytest.fixture
def ledger(database_url: str) -> Iterator[JobLedger]:
    migrate(database_url)
    database = Database(database_url)
    with database.writing() as session:
        issue_key(session, "mine")
    yield JobLedger(database)
    database.close()


def charged(ledger: JobLedger, job_id: str) -> int:
    """The seconds of the job's project, which has no other job that ran."""
    with ledger.database.reading() as session:
        return UsageRepository(session, ledger.get(job_id).project_id).gpu_seconds()


def test_attempts_add_up(ledger: JobLedger, clock: Clock) -> None:
    with ledger.database.writing() as session:
        job_id = store_job(session)
    ledger.transition(job_id, "queued", only_from=("queued", "running", "validating_files"))
    assert charged(ledger, job_id) == 0
    way = [("running", 7), ("paused", 500), ("queued", 90), ("running", 20), ("succeeded", 9000)]
    seen = []
    for status, seconds in way:
        assert ledger.transition(job_id, status, only_from=("queued", "running", "paused"))
        clock.time += seconds
        seen.append(charged(ledger, job_id))
    assert seen == [7, 7, 7, 27, 27]
    assert not ledger.transition(job_id, "running", only_from=("queued",)), "a step that is repeated"
    with ledger.database.reading() as session:
        job = session.query(Job).where(Job.id == job_id).one()
        assert (job.started_at, job.running_since, job.run_seconds) == (1000, None, 27)


def test_time_counts_once_for_each_gpu(ledger: JobLedger, clock: Clock) -> None:
    with ledger.database.writing() as session:
        job_id = store_job(session)
        session.execute(update(Job).values(gpus=8))
    for status in ("running", "paused", "queued", "running"):
        ledger.transition(job_id, status, only_from=("queued", "running", "paused"))
        clock.time += 10
    assert charged(ledger, job_id) == 8 * (10 + 10)


@pytest.mark.parametrize(
    ("recipe", "settings", "gpus"),
    [
        ({}, {}, 1),
        ({"training": {"devices": 4}}, {}, 4),
        ({"training": {"devices": 1}}, {"executor": "ray", "ray": {"nodes": 2, "gpus": 8}}, 16),
        ({}, {"executor": "ray", "ray": {"nodes": 3, "gpus": 0}}, 1),
    ],
)
def test_the_gpus_of_a_job_are_those_of_all_nodes(
    recipe: dict[str, Any], settings: dict[str, Any], gpus: int
) -> None:
    assert gpus_of(recipe, Settings(**settings)) == gpus


def test_the_api_s_pause_resume_and_cancel_keep_the_clock(
    service: Running, client: OpenAI, clock: Clock
) -> None:
    jobs, ledger = client.fine_tuning.jobs, service.ledger
    job_id = create_job(client).id

    def begin(job_id: str) -> None:
        assert ledger.transition(job_id, "running", only_from=("queued",))

    for step, seconds in ((begin, 10), (jobs.pause, 100), (jobs.resume, 100), (begin, 5), (jobs.cancel, 100)):
        step(job_id)
        clock.time += seconds
    assert charged(ledger, job_id) == 15


def test_a_job_cancelled_in_the_queue_costs_nothing(service: Running, client: OpenAI, clock: Clock) -> None:
    job_id = create_job(client).id
    clock.time += 100
    client.fine_tuning.jobs.cancel(job_id)
    assert charged(service.ledger, job_id) == 0
