"""Requests that read data files wait for one another, and no other request waits for them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit.data.validation import check_file
from alignkit_server.pools.file_check_pool import AT_ONCE, OF_A_PROJECT
from tests.server.support import BASE_MODEL, DEADLINE_SECONDS, Running, method, upload, wait_until

SHARED_THREADS = 40
"""anyio's, which all plain functions of FastAPI take turns for."""
ROUTES = ("jobs", "preview", "jobs/estimate")


class Gate:
    """A function that waits until it is let go, and then does what it did before."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self._lock = threading.Lock()
        self.open = threading.Event()
        self.running = 0
        self.most = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.open.wait(DEADLINE_SECONDS)
        with self._lock:
            self.running -= 1
        return self._real(*arguments, **options)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    slow = Gate(check_file)
    monkeypatch.setattr("alignkit_server.jobs.data_files.check_file", slow)
    yield slow
    slow.open.set()


def ask(service: Running, key: str, route: str, file_id: str) -> httpx.Response:
    body = {"model": BASE_MODEL, "training_file": file_id, "method": method()}
    with service.http(key) as http:
        return http.post(f"/v1/fine_tuning/{route}", json=body)


@pytest.mark.parametrize("route", ROUTES)
def test_however_many_files_are_read_other_requests_are_answered(
    service: Running, client: OpenAI, key: str, slow: Gate, route: str
) -> None:
    file_id = upload(client)
    with ThreadPoolExecutor(SHARED_THREADS + 5) as pool:
        answers: list[Future[httpx.Response]] = [
            pool.submit(ask, service, key, route, file_id) for _ in range(SHARED_THREADS + 5)
        ]
        try:
            wait_until(lambda: slow.running == OF_A_PROJECT)
            assert [model.id for model in client.models.list()] == [BASE_MODEL]
            assert not any(answer.done() for answer in answers)
        finally:
            slow.open.set()
        statuses = {answer.result().status_code for answer in answers}
    assert slow.most == OF_A_PROJECT
    assert statuses == ({200} if route == "jobs" else {400})  # this base model has no tokenizer


def test_one_projects_files_leave_places_for_anothers(service: Running, slow: Gate) -> None:
    keys = [service.new_key(f"reads-{number}") for number in range(3)]
    files = {}
    for key in keys:
        with service.client(key) as client:
            files[key] = upload(client)
    with ThreadPoolExecutor(12) as pool:
        first = [pool.submit(ask, service, keys[0], "jobs", files[keys[0]]) for _ in range(4)]
        wait_until(lambda: slow.running == OF_A_PROJECT)
        others = [pool.submit(ask, service, key, "jobs", files[key]) for key in keys[1:] for _ in range(4)]
        wait_until(lambda: slow.running == AT_ONCE)
        slow.open.set()
        assert {answer.result().status_code for answer in [*first, *others]} == {200}
    assert slow.most == AT_ONCE
