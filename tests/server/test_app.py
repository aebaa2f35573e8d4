"""Facts about all routes: one error envelope, request ids, health, and a correct OpenAPI document."""

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit_server.database import require_writable
from tests.server.support import RecordingRunner, Running, create_job, serve, upload

ENVELOPE = {"message", "type", "param", "code"}


@pytest.fixture
def http(service: Running, key: str) -> Any:
    with service.http(key) as http:
        yield http


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/unknown", 404, "GET /v1/unknown"),
        ("GET", "/v1/files/", 404, "/v1/files/"),
        ("PATCH", "/v1/files", 405, "PATCH is not allowed"),
        ("GET", "/v1/files?limit=x", 400, "limit"),
        ("GET", "/v1/fine_tuning/jobs?limit=1001", 400, "1000"),
        ("GET", "/v1/files?order=up", 400, "order"),
        ("GET", "/v1/files/a%00b", 400, "NUL"),
        ("GET", "/v1/files?purpose=%00", 400, "NUL"),
    ],
)
def test_every_error_is_an_envelope(
    http: httpx.Client, method: str, path: str, status: int, words: str
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == ENVELOPE
    assert words in answer.json()["error"]["message"]


def test_a_defect_says_nothing_but_its_request_id(
    service: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.services.catalog, "bases", fail)
    answer = http.get("/v1/models")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert answer.headers["x-should-retry"] == "false"


def test_requests_have_ids_and_logs_no_secrets(
    service: Running, http: httpx.Client, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = http.get("/v1/models"), http.get("/v1/models")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    given = http.get("/v1/files?purpose=private", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert http.get("/v1/models", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    logged = "\n".join(str(record.msg) for record in caplog.records)
    assert "mine-1" in logged
    assert key not in logged
    assert "private" not in logged


def test_health_needs_no_key(service: Running) -> None:
    with service.http(None) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json() == {"status": "ready"}
        assert [http.head(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        service.services.runner_started = False
        try:
            answer = http.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "not_ready"
            assert http.get("/healthz").status_code == 200
        finally:
            service.services.runner_started = True


def test_a_locked_queue_is_not_ready_and_holds_no_thread(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = tmp_path / "dbos.sqlite"
    writer = sqlite3.connect(queue, isolation_level=None)
    writer.execute("CREATE TABLE workflow_status (x)")
    monkeypatch.setattr(service.runner, "probe", lambda: require_writable(queue))
    with service.http(None) as http, ThreadPoolExecutor(12) as pool:
        assert http.get("/readyz").status_code == 200
        writer.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        asked = [pool.submit(http.get, "/readyz") for _ in range(12)]
        assert http.get("/healthz").status_code == 200
        found = [one.result() for one in asked]
        assert {answer.status_code for answer in found} == {503}
        assert found[0].json()["error"]["message"].startswith("The queue's database does not answer")
        assert time.monotonic() - began < 6, "the probes waited for each other"
        writer.execute("ROLLBACK")
        assert http.get("/readyz").status_code == 200
        writer.close()
        queue.unlink()
        assert http.get("/readyz").status_code == 503


def test_the_description_names_every_answer(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert "422" not in json.dumps(schema["paths"])
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if path.startswith("/v1"):
                assert "401" in operation["responses"], (method, path)
                assert operation["security"] == [{"HTTPBearer": []}]
            success = operation["responses"]["200"]["content"]
            assert any("schema" in form for form in success.values()), (method, path)
    create = schema["paths"]["/v1/files"]["post"]
    assert "multipart/form-data" in create["requestBody"]["content"]
    assert create["responses"]["413"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/ErrorEnvelope"
    )


def test_a_service_that_starts_again_knows_everything(tmp_path: Path) -> None:
    with serve(tmp_path) as first:
        key = first.new_key("mine")
        client = first.client(key)
        file_id = upload(client)
        job_id = create_job(client, training_file=file_id).id
        runner = first.runner
        assert runner.started
    assert not runner.started
    with serve(tmp_path) as second:
        client = second.client(key)
        assert client.files.retrieve(file_id)
        assert client.fine_tuning.jobs.retrieve(job_id).status == "queued"
        assert second.ledger.active_jobs() == [job_id]
        first_key = (tmp_path / "first-key").read_text().strip()
        assert second.client(first_key).models.list().data


def test_a_runner_that_fails_to_take_a_job_does_not_lose_it(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the queue is away")

    monkeypatch.setattr(RecordingRunner, "enqueue", fail)
    job = create_job(client)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    assert job.id in service.ledger.active_jobs()
