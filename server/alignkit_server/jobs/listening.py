"""Listeners to jobs: those that wait for the same event share one look for it, and a key has so many at once."""

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
"""Threads, beside those that all routes share."""


class SharedLooks:
    """Looks at the database for listeners. However many ask for the same, one look in `seconds` answers them."""

    def __init__(self) -> None:
        self._threads = CapacityLimiter(LOOKS_AT_ONCE)
        self._looks: dict[object, asyncio.Task[Any]] = {}

    async def ask(self, what: object, look: Callable[[], Any], seconds: float) -> Any:
        """What `look` finds, or found for another within the last `seconds`."""
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
    """What the streams of this server share."""

    def __init__(self) -> None:
        self.looks = SharedLooks()
        self.held = Held()


class ListenerResponse(EventSourceResponse):
    """A stream of events, or 429 where the key has as many as it may."""

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
