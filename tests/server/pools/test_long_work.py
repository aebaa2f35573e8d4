"""Work that grows with a project's data takes none of the threads that all requests share."""

import pkgutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit_server.pools.file_check_pool import OF_A_PROJECT
from tests.server.evals.conftest import make_eval, rows
from tests.server.pools.test_file_check_pool import SHARED_THREADS, Gate
from tests.server.support import BASE_MODEL, Running, create_job, method, upload, wait_until
from tests.server.uploads.test_uploads import open_upload

PATIENCE_SECONDS = 30.0
"""For an answer that waits for nothing."""
Ask = Callable[[httpx.Client], httpx.Response]


def complete(client: OpenAI) -> Ask:
    upload_id = open_upload(client, 0).id
    return lambda http: http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": []})


def run_eval(client: OpenAI) -> Ask:
    path = f"/v1/evals/{make_eval(client)}/runs"
    content = [row | {"sample": {"output_text": "x"}} for row in rows("a")]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    return lambda http: http.post(path, json={"data_source": source})


def metrics(client: OpenAI) -> Ask:
    job_id = create_job(client).id
    return lambda http: http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics")


def sweep(client: OpenAI) -> Ask:
    body = {"model": BASE_MODEL, "training_file": upload(client), "method": method()}
    created: Any = client.post(
        "/fine_tuning/sweeps", body=body | {"sweep": {"beta": [0.1, 0.2]}}, cast_to=object
    )
    return lambda http: http.get(f"/v1/fine_tuning/sweeps/{created['id']}")


@pytest.mark.parametrize(
    ("prepare", "work", "at_once", "statuses"),
    [
        (complete, "alignkit_server.uploads.service._join", 1, {200, 400}),
        (run_eval, "alignkit_server.evals.service.check_rows", OF_A_PROJECT, {200, 429}),
        (metrics, "alignkit_server.jobs.service.collect", OF_A_PROJECT, {200}),
        (sweep, "alignkit_server.sweeps.service._best", OF_A_PROJECT, {200}),
    ],
    ids=["an upload is completed", "rows of an eval", "metrics", "a sweep's table"],
)
def test_however_much_of_it_there_is_other_requests_are_answered(
    service: Running,
    client: OpenAI,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[OpenAI], Ask],
    work: str,
    at_once: int,
    statuses: set[int],
) -> None:
    ask, gate = prepare(client), Gate(pkgutil.resolve_name(work))
    monkeypatch.setattr(work, gate)
    with service.http(key) as http, ThreadPoolExecutor(SHARED_THREADS + 5) as pool:
        answers = [pool.submit(ask, http) for _ in range(SHARED_THREADS + 5)]
        try:
            wait_until(lambda: gate.running >= at_once)
            assert client.with_options(timeout=PATIENCE_SECONDS).models.list().data
            assert not any(answer.done() for answer in answers)
        finally:
            gate.open.set()
        assert {answer.result().status_code for answer in answers} == statuses
    assert gate.most == at_once
