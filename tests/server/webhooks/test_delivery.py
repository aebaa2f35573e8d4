"""Events reach their endpoints through failures and restarts; with DBOS itself, on SQLite."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS
from openai import OpenAI
from sqlalchemy import select

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.ids import WEBHOOK, new_id
from alignkit_server.keys.service import issue_key
from alignkit_server.migrate import migrate
from alignkit_server.runner import dbos as dbos_runner
from alignkit_server.runner.dbos import DBOSRunner
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.step_services import StepServices
from alignkit_server.settings import Settings
from alignkit_server.tables import Delivery, Endpoint, Job, Project
from alignkit_server.vault import open_vault
from alignkit_server.webhooks import delivery, sender
from alignkit_server.webhooks.signing import new_secret
from tests.server.runner.test_ledger import store_job
from tests.server.runner.test_workflow import FakeEngines, FakeExecutor
from tests.server.support import wait_until
from tests.server.webhooks.receiver import Receiver, dripping, receiving

SUCCEEDED = "fine_tuning.job.succeeded"
SECRETS: dict[str, str] = {}
"""Endpoint -> its secret before sealing."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path, webhook_private_targets=True)
    settings.jobs_dir.mkdir()
    return settings


@pytest.fixture
def ledger(settings: Settings) -> Iterator[JobLedger]:
    migrate(settings.sqlalchemy_url)
    database = Database(settings.sqlalchemy_url)
    with database.writing() as session:
        issue_key(session, "mine")
    yield JobLedger(database)
    database.close()


@contextmanager
def running(settings: Settings, ledger: JobLedger) -> Iterator[DBOSRunner]:
    """The durable queue; its jobs are not what is tested, so there is neither trainer nor engine."""
    engines: Any = FakeEngines()
    runner = DBOSRunner(StepServices(settings, ledger, FakeExecutor(), engines, threading.Event()))
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


def new_job(ledger: JobLedger) -> str:
    """A job that has begun, so that a runner that starts does not take it up."""
    with ledger.database.writing() as session:
        job_id = store_job(session)
        session.flush()
        session.query(Job).where(Job.id == job_id).one().status = "paused"
    return job_id


def add_endpoint(ledger: JobLedger, url: str, *event_types: str) -> Endpoint:
    path = Path(str(ledger.database.engine.url.database))
    vault, secret = open_vault(path.parent), new_secret()
    endpoint = Endpoint(
        id=new_id(WEBHOOK),
        project_id=ledger.get(new_job(ledger)).project_id,
        created_at=now(),
        updated_at=now(),
        name="mine",
        url=url,
        event_types=list(event_types),
        secret=vault.seal(secret),
    )
    with ledger.database.writing() as session:
        session.add(endpoint)
    SECRETS[endpoint.id] = secret
    return endpoint


def end(ledger: JobLedger, runner: DBOSRunner | None, status: str = "succeeded") -> str:
    job_id = new_job(ledger)
    assert ledger.transition(job_id, status, only_from=("paused",))
    assert not ledger.transition(job_id, status, only_from=("paused",)), "a job ends once"
    if runner is not None:
        runner.announce(job_id)
        runner.announce(job_id)
    return job_id


def deliveries(ledger: JobLedger) -> list[Delivery]:
    with ledger.database.reading() as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.seq)))


def statuses(ledger: JobLedger) -> list[str]:
    return [row.status for row in deliveries(ledger)]


def check_event(receiver: Receiver, endpoint: Endpoint, job_id: str) -> None:
    body, headers = receiver.received[-1]
    client = OpenAI(api_key="x")
    event: Any = client.webhooks.unwrap(body, headers, secret=SECRETS[endpoint.id])
    assert (event.type, event.data.id) == (SUCCEEDED, job_id)
    assert event.id == headers["webhook-id"]


def test_an_event_reaches_who_asked_for_it_and_once(settings: Settings, ledger: JobLedger) -> None:
    with receiving() as receiver, running(settings, ledger) as runner:
        endpoint = add_endpoint(ledger, receiver.url, SUCCEEDED)
        add_endpoint(ledger, receiver.url, "fine_tuning.job.failed")
        job_id = end(ledger, runner)
        wait_until(lambda: statuses(ledger) == ["delivered"])
        check_event(receiver, endpoint, job_id)
        end(ledger, runner, "cancelled")
        assert len(receiver.received) == 1
        assert len(deliveries(ledger)) == 1


def test_an_endpoint_that_fails_is_tried_again_and_then_no_more(
    settings: Settings, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BACK_OFF_SECONDS", (0.1, 0.1))
    with receiving() as receiver, running(settings, ledger) as runner:
        endpoint = add_endpoint(ledger, receiver.url, SUCCEEDED)
        receiver.status = 503
        end(ledger, runner)
        wait_until(lambda: statuses(ledger) == ["given_up"])
        assert deliveries(ledger)[0].attempts == len(receiver.received) == 3
        assert deliveries(ledger)[0].last_answer == "status 503"
        ids = {headers["webhook-id"] for _, headers in receiver.received}
        assert len(ids) == 1
        job_id = end(ledger, runner)
        wait_until(lambda: len(receiver.received) == 4)
        receiver.status = 204
        wait_until(lambda: statuses(ledger) == ["given_up", "delivered"])
        check_event(receiver, endpoint, job_id)


def test_an_event_that_an_outage_kept_from_the_queue_is_sent(
    settings: Settings, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_server.runner.dbos.LATE_SECONDS", 0.1)
    with receiving() as receiver, running(settings, ledger):
        endpoint = add_endpoint(ledger, receiver.url, SUCCEEDED)
        job_id = end(ledger, None)
        wait_until(lambda: statuses(ledger) == ["delivered"])
        check_event(receiver, endpoint, job_id)
        assert len(receiver.received) == 1


def test_an_event_survives_restarts(
    settings: Settings, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BACK_OFF_SECONDS", (1.0,) * 20)
    with receiving() as receiver:
        endpoint = add_endpoint(ledger, receiver.url, SUCCEEDED)
        port = receiver.port
    end(ledger, None)  # the server was killed between the job's end and its announcement
    with running(settings, ledger):
        wait_until(lambda: deliveries(ledger)[0].attempts >= 1)
        assert deliveries(ledger)[0].last_answer == "it cannot be reached: ConnectError"
    with receiving(port) as receiver, running(settings, ledger):
        wait_until(lambda: statuses(ledger) == ["delivered"])
        check_event(receiver, endpoint, deliveries(ledger)[0].job_id)
        assert deliveries(ledger)[0].attempts > 1


def test_an_event_that_an_older_version_queued_is_sent_with_its_attempts_kept(
    settings: Settings, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BACK_OFF_SECONDS", (0.1, 3600.0))
    with receiving() as receiver, monkeypatch.context() as older:
        older.setattr(dbos_runner, "WORKFLOW_VERSION", "1")
        receiver.status = 503
        with running(settings, ledger) as runner:
            add_endpoint(ledger, receiver.url, SUCCEEDED)
            end(ledger, runner)
            wait_until(lambda: deliveries(ledger)[0].attempts == 2)
        port = receiver.port
    with receiving(port), running(settings, ledger):
        wait_until(lambda: statuses(ledger) == ["delivered"])
        assert deliveries(ledger)[0].attempts == 3
        assert not DBOS.list_workflows(app_version="1", status=["PENDING", "ENQUEUED", "DELAYED"])


def test_a_deleted_endpoint_gets_nothing_more(
    settings: Settings, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BACK_OFF_SECONDS", (0.1,) * 100)
    with receiving() as receiver, running(settings, ledger) as runner:
        endpoint = add_endpoint(ledger, receiver.url, SUCCEEDED)
        receiver.status = 500
        end(ledger, runner)
        wait_until(lambda: receiver.received)
        with ledger.database.writing() as session:
            session.delete(session.get(Endpoint, endpoint.seq))
        assert deliveries(ledger) == []


def test_a_project_whose_endpoints_hang_keeps_no_other_s_events(
    settings: Settings, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "TIMEOUT_SECONDS", 3.0)
    with receiving() as receiver, dripping() as url, running(settings, ledger) as runner:
        add_endpoint(ledger, url, SUCCEEDED)
        for _ in range(2 * delivery.SENT_AT_ONCE):
            end(ledger, runner)
        endpoint = add_endpoint(ledger, receiver.url, SUCCEEDED)
        job_id = new_job(ledger)
        with ledger.database.writing() as session:
            issue_key(session, "other")
            theirs = session.query(Project).where(Project.name == "other").one().id
        with ledger.database.writing() as session:
            session.query(Endpoint).where(Endpoint.id == endpoint.id).one().project_id = theirs
            session.query(Job).where(Job.id == job_id).one().project_id = theirs
        assert ledger.transition(job_id, "succeeded", only_from=("paused",))
        runner.announce(job_id)
        wait_until(lambda: receiver.received)
        waiting = [row for row in deliveries(ledger) if row.project_id != theirs and not row.attempts]
        assert len(waiting) >= delivery.SENT_AT_ONCE
