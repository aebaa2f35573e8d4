"""Turns of requests: however many one project sends, another's begins next, and what waits long takes no turn."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from alignkit_server.files.service import FileService
from alignkit_server.limits import request_turns
from alignkit_server.limits.request_turns import RequestTurns, end_turn
from tests.server.limits.test_open import SlowEngines
from tests.server.support import serve, wait_until

Scope = dict[str, Any]


def request(project: str) -> Scope:
    return {"type": "http", "state": {"principal": SimpleNamespace(project_id=project)}}


class Slow:
    """An application that records whose request begins, and ends the oldest when it is told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.scopes: list[Scope] = []
        self._ends: list[asyncio.Event] = []
        self._more = asyncio.Event()

    async def __call__(self, scope: Scope, _receive: Any, send: Any) -> None:
        self.begun.append(scope["state"]["principal"].project_id)
        self.scopes.append(scope)
        self._more.set()
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
    monkeypatch.setattr(request_turns, "TURN_SECONDS", seconds)

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


def test_a_route_ends_its_turn_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(app: Slow, send: Any) -> None:
        await send("many", 4)
        assert len(app.begun) == 3
        for _ in range(2):  # the second time it does nothing
            end_turn(Request(app.scopes[0]))
            await settle()
            assert len(app.begun) == 4

    run(monkeypatch, 60.0, work)


def test_what_takes_long_goes_on_without_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(app: Slow, send: Any) -> None:
        await send("many", 50)
        await app.all_begun(50)

    run(monkeypatch, 0.01, work)


def test_a_service_works_on_few_requests_of_one_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_turns, "TURN_SECONDS", 60.0)
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


def test_a_chat_that_waits_for_its_engine_takes_no_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_turns, "TURN_SECONDS", 60.0)
    body = {"model": "tiny-llama", "messages": []}
    engines = SlowEngines()
    with serve(tmp_path, engines=engines) as service, service.http(service.new_key("chats")) as http:
        with ThreadPoolExecutor(5) as pool:
            chats = [pool.submit(http.post, "/v1/chat/completions", json=body) for _ in range(5)]
            wait_until(lambda: engines.asked >= 6)  # five held, one start
            assert http.get("/v1/models").status_code == 200
            engines.gate.set()
        assert {chat.result().status_code for chat in chats} == {503}
