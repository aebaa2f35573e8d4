"""Listeners to jobs: those waiting for the same event share one query; each key has a limit of streams."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from alignkit_server.errors import ApiError, error_response
from alignkit_server.keys.service import Principal
from alignkit_server.limits.open import Held

LOOKS_AT_ONCE = 2
"""Threads for these queries, separate from those that all routes share."""


class SharedLooks:
    """Database queries shared by listeners: one query per `seconds` answers everyone who asks the same thing."""

    def __init__(self) -> None:
        self._threads = CapacityLimiter(LOOKS_AT_ONCE)
        self._looks: dict[object, asyncio.Task[Any]] = {}

    async def ask(self, what: object, look: Callable[[], Any], seconds: float) -> Any:
        """The result of `look`, or a result that another listener got for `what` within the last `seconds`."""
        task = self._looks.get(what)
        if task is None:
            task = asyncio.create_task(to_thread.run_sync(look, limiter=self._threads))
            self._looks[what] = task
            task.add_done_callback(lambda done: self._keep(what, done, seconds))
        return await asyncio.shield(task)

    def _keep(self, what: object, task: asyncio.Task[Any], seconds: float) -> None:
        if task.cancelled() or task.exception() is not None:
            self._looks.pop(what, None)
            return
        task.get_loop().call_later(seconds, self._looks.pop, what, None)


class Listening:
    """State shared by the event streams of this server."""

    def __init__(self) -> None:
        self.looks = SharedLooks()
        self.held = Held()


class ListenerResponse(EventSourceResponse):
    """A stream of events, or 429 if the key already has its maximum number of streams."""

    def __init__(
        self, chunks: AsyncIterator[bytes], held: Held, listener: Principal, most: int | None
    ) -> None:
        super().__init__(chunks, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._held = held
        self._listener = listener
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._held.one(self._listener.key_id, self._most, "streams of this key"):
                await super().__call__(scope, receive, send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
