"""Waiting for engines: one project's many starts keep no other's request and no name lookup from a thread."""

import asyncio
import threading
import time

from aiohttp import web
from anyio import to_thread

from alignkit_server.chat.gateway import STARTS_AT_ONCE, Asked, ChatGateway
from alignkit_server.chat.options import Demand
from alignkit_server.engines.facts import Lease
from tests.server.support import NoEngines

MORE_THAN_ASYNCIO_HAS = 40
"""The threads of asyncio's own pool are at most 32."""


class FullEngines(NoEngines):
    """Engines of which only `base` has a place; the others wait until the test opens the gate."""

    def __init__(self, url: str) -> None:
        self.url, self.gate, self.begun, self.waiting = url, threading.Event(), threading.Semaphore(0), 0
        self.ready: set[str] = set()

    def running_endpoint(self, base_model: str) -> str | None:  # type: ignore[override]
        return self.url if base_model in self.ready else None

    def lease(self, base_model: str, rank: int = 0) -> Lease | None:  # type: ignore[override]
        return Lease(self.url, lambda: None) if base_model in self.ready else None

    def endpoint(self, base_model: str, rank: int = 0) -> str:
        if base_model != "base":
            self.waiting += 1
            self.begun.release()
            self.gate.wait(60)
        self.ready.add(base_model)
        return self.url

    async def begin(self, starts: int) -> None:
        """Return once so many further starts wait."""
        for _ in range(starts):
            assert await to_thread.run_sync(self.begun.acquire, True, 10)


def asked(engine: str, project: str) -> Asked:
    return Asked("/v1/completions", b"{}", engine, project, Demand(1, 1, False))


async def beside_full_engines() -> None:
    async def complete(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engines = FullEngines(f"http://127.0.0.1:{runner.addresses[0][1]}")
    gateway = ChatGateway(engines)
    mine = [
        asyncio.create_task(gateway.answer(asked(f"ft:base:a::{n}", "a")))
        for n in range(MORE_THAN_ASYNCIO_HAS)
    ]
    try:
        await engines.begin(STARTS_AT_ONCE)
        for project in ("a", "b"):
            assert await asyncio.wait_for(gateway.answer(asked("base", project)), 10) == b"{}"
        looked_up = asyncio.get_running_loop().getaddrinfo("localhost", 80)
        assert await asyncio.wait_for(looked_up, 10)
        theirs = asyncio.create_task(gateway.answer(asked("ft:base:b::1", "b")))
        await engines.begin(1)
        assert engines.waiting == STARTS_AT_ONCE + 1
    finally:
        engines.gate.set()
    assert set(await asyncio.gather(*mine, theirs)) == {b"{}"}
    await gateway.aclose()
    await runner.cleanup()


def test_one_projects_waiting_starts_take_no_thread_that_others_need() -> None:
    began = time.monotonic()
    asyncio.run(asyncio.wait_for(beside_full_engines(), 60))
    assert time.monotonic() - began < 30  # nothing waited for the gate's own end
