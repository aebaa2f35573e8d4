"""Many listeners cost as much as one, and each key has a limit of listeners."""

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
from openai import OpenAI

from alignkit_server.pools.listening import SharedLooks
from tests.server.support import Running, create_job, serve


def test_those_who_wait_for_the_same_share_one_look() -> None:
    gate, looks = threading.Event(), []

    def look() -> str:
        gate.wait(5)
        looks.append(1)
        return "found"

    async def work() -> list[str]:
        shared = SharedLooks()
        asking = [asyncio.create_task(shared.ask("a", look, 10)) for _ in range(1000)]
        await asyncio.sleep(0)
        gate.set()
        return [
            *await asyncio.gather(*asking),
            await shared.ask("a", look, 10),
            await shared.ask("b", look, 10),
        ]

    assert asyncio.run(work()) == ["found"] * 1002
    assert len(looks) == 2  # of a, and of b


def test_a_look_is_forgotten_after_its_time_and_when_it_fails() -> None:
    answers = iter([1, ZeroDivisionError(), 2, 3])

    def look() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def work() -> None:
        shared = SharedLooks()
        assert await shared.ask("a", look, 0.01) == 1
        await asyncio.sleep(0.1)
        with pytest.raises(ZeroDivisionError):
            await shared.ask("a", look, 10)
        assert await shared.ask("a", look, 10) == 2
        assert await shared.ask("a", look, 10) == 2

    asyncio.run(work())


def test_a_key_has_so_many_streams_and_another_key_its_own(tmp_path: Path) -> None:
    with serve(tmp_path, limits={"streams_open": 2}) as service, contextlib.ExitStack() as open_:
        job_id = job_of(service, key := service.new_key("mine"))
        path = f"/v1/fine_tuning/jobs/{job_id}/events?stream=true"
        http = open_.enter_context(service.http(key))
        for _ in range(2):
            assert open_.enter_context(http.stream("GET", path)).status_code == 200
        refused = http.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        other = open_.enter_context(service.http(service.new_key("mine")))
        assert open_.enter_context(other.stream("GET", path)).status_code == 200


def job_of(service: Running, key: str) -> str:
    client: OpenAI
    with service.client(key) as client:
        return str(create_job(client).id)
