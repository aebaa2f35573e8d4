"""An engine whose structured output stands still is replaced; one that is merely busy, or works, is not."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from alignkit_server.chat import watch
from alignkit_server.chat.watch import StructuredWatch

PATIENCE = 0.05


class Engines:
    def __init__(self) -> None:
        self.replaced: list[str] = []

    def replace(self, model: str) -> bool:
        self.replaced.append(model)
        return True


async def with_engine(hangs: set[str], work: Any) -> list[str]:
    """What was replaced after `work`, at an engine that never answers the kinds of question in `hangs`."""
    asked = asyncio.Event()

    async def complete(request: web.Request) -> web.Response:
        asked.set()
        kind = "structured" if "structured_outputs" in await request.json() else "plain"
        if kind in hangs:
            await asyncio.sleep(60)
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    engines = Engines()
    async with aiohttp.ClientSession() as client:
        watching = StructuredWatch(engines, lambda: client, PATIENCE)
        await work(watching, url, asked, engines)
        await watching.aclose()
    await runner.cleanup()
    return engines.replaced


def run(work: Coroutine[Any, Any, list[str]]) -> list[str]:
    return asyncio.run(asyncio.wait_for(work, 60))


async def waits(watching: StructuredWatch, url: str, asked: asyncio.Event, engines: Engines) -> None:
    """One structured request that does not end before the questions are over."""
    over = watching.begin("tiny", url)
    await asked.wait()
    for _ in range(100):
        if engines.replaced:
            break
        await asyncio.sleep(0.02)
    over()


@pytest.mark.parametrize(
    ("hangs", "replaced"), [({"structured"}, ["tiny"]), ({"structured", "plain"}, []), (set(), [])]
)
def test_only_what_stands_still_is_replaced(
    hangs: set[str], replaced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "ASK_SECONDS", 0.3)
    assert run(with_engine(hangs, waits)) == replaced


def test_an_engine_is_not_asked_for_requests_that_end_in_time() -> None:
    async def ends(watching: StructuredWatch, url: str, asked: asyncio.Event, _: Engines) -> None:
        for over in [watching.begin("tiny", url) for _ in range(3)]:
            over()
        await asyncio.sleep(3 * PATIENCE)
        assert not asked.is_set()
        assert not watching._open
        assert not watching._watching

    assert run(with_engine({"structured"}, ends)) == []
