"""A key's pace: beyond a burst it waits while others are at work, also to be refused, and nobody else does."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit_server.limits import pace
from alignkit_server.limits.open import Held
from alignkit_server.limits.pace import Pace, Paces
from alignkit_server.settings import Limits
from tests.server.support import serve


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def paces(clock: Clock) -> Paces:
    """The paces of keys where another project, whose key is "other", has just sent a request."""
    paces = Paces(clock)
    paces.wait("others", "other")
    return paces


def test_keys_that_rest_are_forgotten_and_busy_ones_are_not(paces: Paces, clock: Clock) -> None:
    for number in range(5 * pace.KEPT):
        paces.count(f"key-{number}", 10.0)
        clock.now += 1.0
        paces.count("busy", 10.0, 100.0)
    assert len(paces._due) <= pace.KEPT + 1
    paces.wait("others", "other")
    assert paces.wait("busy", "busy") > 0.0


def test_a_burst_begins_at_once_and_the_rest_at_the_rate(paces: Paces, clock: Clock) -> None:
    waits = []
    for _ in range(300):  # five seconds of fifty, and fifty more
        waits.append(paces.wait("mine", "key"))
        paces.count("key", 50.0)
    assert waits[:251] == [0.0] * 251
    assert waits[251:] == pytest.approx([n / 50 for n in range(1, 50)])
    assert paces.wait("mine", "second key") == 0
    clock.now += 1
    assert paces.wait("mine", "key") == 0


def test_a_project_alone_never_waits(clock: Clock) -> None:
    paces = Paces(clock)
    for _ in range(1000):
        assert paces.wait("mine", "key") == 0
        paces.count("key", 50.0)
    assert paces.wait("others", "other") == 0
    assert paces.wait("third", "other") == 0
    clock.now += 9
    paces.count("key", 50.0, 1000)
    assert paces.wait("mine", "key") == 5
    clock.now += 2
    paces.count("key", 50.0, 1000)
    assert paces.wait("mine", "key") == 0


def test_no_request_waits_longer_than_five_seconds_whatever_came_before(paces: Paces, clock: Clock) -> None:
    paces.count("key", 10.0, 10**6)
    assert paces.wait("mine", "key") == 5
    clock.now += 5
    assert paces.wait("mine", "key") == 0


def principal(project: str, **limits: int) -> Any:
    return SimpleNamespace(project_id=project, key_id=f"key of {project}", limits=limits)


async def nothing(*_: Any) -> None:
    pass


def test_a_body_counts_as_it_comes_and_waiting_requests_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PATIENCE_SECONDS", 3600.0)
    held, begun = Held(), []

    async def read(scope: Any, receive: Any, _send: Any) -> None:
        begun.append(scope["state"]["principal"].project_id)
        while (await receive())["more_body"]:
            pass

    async def main() -> None:
        app = Pace(read, Limits(), held)
        body = [{"body": bytes(2**20), "more_body": n < 251} for n in range(252)]

        def ask(project: str, *messages: Any) -> "asyncio.Task[None]":
            sent, scope = (
                iter(messages or body[-1:]),
                {"state": {"principal": principal(project, requests_open=2)}},
            )

            async def receive() -> Any:
                return next(sent)

            return asyncio.create_task(app(scope, receive, nothing))

        await ask("other")
        await ask("large", *body)
        waiting = [ask("large"), ask("large")]
        await asyncio.sleep(0)
        assert begun == ["other", "large"]
        assert held.all_by("large", 2)
        await ask("large")  # goes on to be refused
        await ask("other")
        assert begun == ["other", "large", "large", "other"]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not held.all_by("large", 1)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_service_slows_who_asks_too_often_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "BURST_SECONDS", 0.0)
    monkeypatch.setattr(pace, "LEAST_RATE", 0.01)
    monkeypatch.setattr(pace, "PATIENCE_SECONDS", 2.0)
    with serve(tmp_path, limits={"requests_per_minute": 1}) as service, ThreadPoolExecutor(1) as pool:
        key, others = service.new_key("often"), [service.new_key("other") for _ in range(2)]
        with service.http(key) as often, service.http(others[0]) as first, service.http(others[1]) as second:
            assert first.get("/v1/models").status_code == 200
            start = time.monotonic()
            assert often.get("/v1/models").status_code == 200
            refused = pool.submit(often.get, "/v1/models")
            assert second.get("/v1/models").status_code == 200
            assert not refused.done()
            assert refused.result().status_code == 429
            assert time.monotonic() - start >= 2
