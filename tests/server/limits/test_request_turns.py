"""Turns of requests: however many one project sends, another's begins next, and what waits long takes no turn."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from anyio import to_thread

from alignkit_server.errors import ApiError
from alignkit_server.files.service import FileService
from alignkit_server.limits import turns
from alignkit_server.limits.incoming import RECEIVED
from alignkit_server.limits.request_turns import RequestTurns
from alignkit_server.limits.turns import end_turn
from alignkit_server.preflight import routes as preflight_routes
from alignkit_server.webhooks import routes as webhook_routes
from tests.server.limits.test_open import SlowEngines
from tests.server.support import BASE_MODEL, Running, serve, wait_until

Scope = dict[str, Any]


def request(project: str) -> Scope:
    return {"type": "http", "state": {"principal": SimpleNamespace(project_id=project)}}


class Slow:
    """An application that records whose request begins, and ends the oldest when it is told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.waits = False
        """Whether requests end their turns, each of them twice."""
        self._ends: list[asyncio.Event] = []
        self._more = asyncio.Event()

    async def __call__(self, scope: Scope, _receive: Any, send: Any) -> None:
        self.begun.append(scope["state"]["principal"].project_id)
        self._more.set()
        for _ in range(2 if self.waits else 0):
            end_turn()
        self._ends.append(end := asyncio.Event())
        await end.wait()
        await send({"type": "http.response.start"})
        await asyncio.sleep(3600)  # the body of a stream

    async def all_begun(self, count: int) -> None:
        while len(self.begun) < count:
            self._more.clear()
            await self._more.wait()

    async def end_one(self) -> None:
        self._ends.pop(0).set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def nothing(*_: Any) -> None:
    pass


def run(monkeypatch: pytest.MonkeyPatch, seconds: float, work: Any) -> None:
    """Do `work` with an application that records, and a way to send it a request of a project."""
    monkeypatch.setattr(turns, "TURN_SECONDS", seconds)

    async def main() -> None:
        app, tasks = Slow(), set()
        fair = RequestTurns(app)

        async def send(project: str, count: int = 1) -> None:
            tasks.update(asyncio.create_task(fair(request(project), nothing, nothing)) for _ in range(count))
            await settle()

        await asyncio.wait_for(work(app, send), 30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def test_a_project_of_many_requests_leaves_a_place_and_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(app: Slow, send: Any) -> None:
        await send("many", 50)
        assert app.begun == ["many"] * 3
        await send("other")
        assert app.begun[3:] == ["other"]  # at once
        await send("third")
        assert len(app.begun) == 4  # all places are taken
        await app.end_one()
        assert app.begun[4:] == ["third"]  # before the 47 that came first

    run(monkeypatch, 60.0, work)


def test_a_turn_lasts_until_the_answer_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(app: Slow, send: Any) -> None:
        await send("many", 5)
        for begun in (3, 4, 5):
            assert len(app.begun) == begun
            await app.end_one()  # the streams stay open

    run(monkeypatch, 60.0, work)


def test_a_route_that_ends_its_turn_lets_another_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(app: Slow, send: Any) -> None:
        app.waits = True
        await send("many", 10)
        assert len(app.begun) == 10
        app.waits = False
        await send("many", 10)
        assert len(app.begun) == 13

    run(monkeypatch, 60.0, work)


def test_what_takes_long_goes_on_without_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(app: Slow, send: Any) -> None:
        await send("many", 50)
        await app.all_begun(50)

    run(monkeypatch, 0.01, work)


def test_a_service_works_on_few_requests_of_one_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 60.0)
    lock, at_work, most = threading.Lock(), 0, 0
    plain = FileService.list

    def slow(self: FileService, *given: Any) -> Any:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1
        return plain(self, *given)

    monkeypatch.setattr(FileService, "list", slow)
    with (
        serve(tmp_path) as service,
        service.http(service.new_key("many")) as http,
        ThreadPoolExecutor(20) as pool,
    ):
        answers = list(pool.map(lambda _: http.get("/v1/files").status_code, range(40)))
    assert answers == [200] * 40
    assert most <= 3


@dataclass
class Waiting:
    """A service, a client of one project, and threads for its requests."""

    service: Running
    http: httpx.Client
    pool: ThreadPoolExecutor

    def answers(self) -> bool:
        """Whether another request of the project is answered, within far less than a turn."""
        return self.http.get("/v1/models", timeout=30).is_success


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    """A service whose requests for engines, files and peers wait, and whose turns do not end by themselves."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 600.0)
    engines = SlowEngines()

    def prepare(*_: Any) -> None:
        engines.gate.wait(60)
        raise ApiError(400, "This is over.")

    async def try_out(*_: Any) -> None:
        await to_thread.run_sync(prepare)

    monkeypatch.setattr(preflight_routes, "prepare", prepare)
    monkeypatch.setattr(webhook_routes, "try_out", try_out)
    with (
        serve(tmp_path, engines=engines, webhook_private_targets=True) as service,
        service.http(service.new_key("many")) as http,
        ThreadPoolExecutor(5) as pool,
    ):
        yield Waiting(service, http, pool)
        engines.gate.set()


@pytest.mark.parametrize("kind", ["chat/completions", "fine_tuning/preview", "webhook_endpoints/{}/test"])
def test_a_request_that_waits_takes_no_turn(waiting: Waiting, kind: str) -> None:
    event = "fine_tuning.job.succeeded"
    asked = {"name": "a", "url": "http://127.0.0.1:9/", "event_types": [event]}
    endpoint = waiting.http.post("/v1/webhook_endpoints", json=asked).json()["id"]
    body = {
        "chat/completions": {"model": BASE_MODEL, "messages": []},
        "fine_tuning/preview": {"model": BASE_MODEL, "training_file": "file-a"},
        "webhook_endpoints/{}/test": {"event_type": event},
    }[kind]
    requests = [
        waiting.pool.submit(waiting.http.post, f"/v1/{kind.format(endpoint)}", json=body) for _ in range(5)
    ]
    for _ in range(20):
        assert waiting.answers()
    assert not any(request.done() for request in requests)


def test_an_upload_that_comes_slowly_takes_no_turn(waiting: Waiting) -> None:
    address = urlsplit(waiting.service.url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: {waiting.http.headers['authorization']}\r\n"
        "content-type: multipart/form-data; boundary=b\r\ncontent-length: 1000\r\n\r\n--b\r\n"
    )
    folder = waiting.service.settings.incoming_dir
    with contextlib.ExitStack() as many:
        for _ in range(5):
            upload = socket.create_connection((address.hostname, address.port), timeout=30)
            many.enter_context(upload).sendall(head.encode())
        wait_until(lambda: len(list(folder.rglob(f"{RECEIVED}*"))) == 5, 30)
        assert waiting.answers()
