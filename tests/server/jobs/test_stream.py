"""A job's events as they happen: server-sent events, from the start or from where a listener left."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit_server.clock import now
from alignkit_server.tables import ApiKey
from tests.server.support import Running, create_job


@pytest.fixture
def http(service: Running, key: str) -> Iterator[httpx.Client]:
    with service.http(key) as http:
        yield http


def finish(service: Running, job_id: str) -> None:
    last = [("info", "The job has successfully completed")]
    service.ledger.transition(job_id, "succeeded", only_from=("queued", "running"), events=last)


def listen(http: httpx.Client, job_id: str, **options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, event) as they come, until the stream ends."""
    options.setdefault("params", {"stream": "true"})
    with http.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/events", **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif fields:
                yield fields["id"], json.loads(fields["data"])
                fields = {}


def test_a_listener_hears_all_until_the_job_is_over(
    service: Running, client: OpenAI, http: httpx.Client
) -> None:
    job = create_job(client)
    heard = []
    for _, event in listen(http, job.id):
        heard.append(event["message"])
        if event["message"] == "Files validated, job queued":
            service.ledger.transition(job.id, "running", only_from=("queued",))
            service.ledger.add_event(
                job.id, level="info", message="Step 1", type="metrics", data={"loss": 0.5}
            )
        if event["message"] == "Step 1":
            assert event["data"] == {"loss": 0.5}
            finish(service, job.id)
    assert heard == [
        f"Created fine-tuning job: {job.id}",
        "Files validated, job queued",
        "Step 1",
        "The job has successfully completed",
    ]


def test_a_listener_goes_on_where_it_left(service: Running, client: OpenAI, http: httpx.Client) -> None:
    job = create_job(client)
    for number in range(3):
        service.ledger.add_event(job.id, level="info", message=f"Step {number}")
    finish(service, job.id)
    ids = [event_id for event_id, _ in listen(http, job.id)]
    newest_first = [event.id for event in client.fine_tuning.jobs.list_events(job.id)]
    assert ids == newest_first[::-1]
    rest = listen(http, job.id, params={}, headers={"accept": "text/event-stream", "last-event-id": ids[2]})
    assert [event_id for event_id, _ in rest] == ids[3:]


def test_a_listener_that_heard_all_need_not_come_back(
    service: Running, client: OpenAI, http: httpx.Client
) -> None:
    job = create_job(client)
    finish(service, job.id)
    last = client.fine_tuning.jobs.list_events(job.id).data[0].id
    path = f"/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    assert http.get(path, headers={"last-event-id": last}).status_code == 204


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_stream_ends_with_its_key(
    service: Running, client: OpenAI, project: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("alignkit_server.jobs.stream.KEY_SECONDS", 0.0)
    job, token = create_job(client), service.new_key(project)
    with service.http(token) as http:
        heard = listen(http, job.id)
        next(heard)
        with service.services.database.writing() as session:
            key = session.query(ApiKey).where(ApiKey.hint == token[-4:]).one()
            if end == "revoked":
                session.delete(key)
            else:
                key.expires_at = now() - 1
        for _ in heard:  # those that came before, and then no more
            pass
        assert http.get(f"/v1/fine_tuning/jobs/{job.id}/events").status_code == 401


@pytest.mark.parametrize("of", ["events", "metrics"])
def test_a_cancelled_jobs_stream_ends_with_all_that_its_events_hold(
    service: Running, client: OpenAI, http: httpx.Client, of: str
) -> None:
    job = create_job(client)
    service.ledger.transition(job.id, "running", only_from=("queued",))

    def report(number: int) -> None:  # as a run that is being stopped still does
        service.ledger.add_event(
            job.id, level="info", message=f"{number}", type="metrics", source_line=number
        )

    report(0)
    client.fine_tuning.jobs.cancel(job.id)
    report(1)
    path = f"/v1/fine_tuning/jobs/{job.id}/{of}?stream=true"
    heard = [
        line.removeprefix("id: ") for line in http.get(path).text.splitlines() if line.startswith("id: ")
    ]
    report(2)
    kept = client.fine_tuning.jobs.list_events(job.id).data[::-1]
    assert [event.message for event in kept[-2:]] == ["0", "The job was cancelled"]
    assert heard == [event.id for event in kept if of == "events" or event.type == "metrics"]
    assert http.get(path, headers={"last-event-id": heard[-1]}).status_code == 204


def test_an_event_of_another_job_is_no_place_to_start(
    service: Running, client: OpenAI, http: httpx.Client
) -> None:
    job, other = create_job(client), create_job(client)
    event = client.fine_tuning.jobs.list_events(other.id).data[0].id
    path = f"/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    answer = http.get(path, headers={"last-event-id": event})
    assert answer.status_code == 400
    assert "Last-Event-ID" in answer.json()["error"]["message"]


def test_many_events_come_whole_and_in_order(service: Running, client: OpenAI, http: httpx.Client) -> None:
    job = create_job(client)
    for number in range(450):
        service.ledger.add_event(job.id, level="info", message=str(number), source_line=number)
    finish(service, job.id)
    heard = [event["message"] for _, event in listen(http, job.id)]
    assert heard[2:-1] == [str(number) for number in range(450)]
    pages = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    assert [event.message for event in pages] == heard[::-1]


def test_quiet_streams_are_kept_alive(
    service: Running, client: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_server.jobs.stream.KEEP_ALIVE_SECONDS", 0.0)
    job = create_job(client)
    with http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as answer:
        assert any(line == ": keep-alive" for line in answer.iter_lines())
