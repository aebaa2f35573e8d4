"""The pace of a key's requests: where other projects are at work, no key takes the whole machine for long.

A key may send its requests of a minute all at once. That is welcome on an idle service; while others are at work, the
requests beyond a burst begin at the rate of the key's limit, and what was sent is answered all the same.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit_server.keys.service import caller_of
from alignkit_server.limits.open import OPEN, Held
from alignkit_server.limits.quotas import limits_of
from alignkit_server.settings import Limits

BURST_SECONDS = 5.0
"""A burst is what the rate allows in that time."""
LEAST_RATE = 10.0
"""Requests per second; a lower limit per minute refuses, and need not slow."""
COUNTED_BYTES = 2**20
"""Bytes of bodies that count as one more request: reading them takes about as long."""
PATIENCE_SECONDS = 5.0
"""The longest that a request waits, whatever its key did before."""
ALONE_SECONDS = 10.0
"""Seconds without another project's request after which a project counts as alone."""
KEPT = 1000
"""Keys whose times are kept at least; beyond, those whose time is over are forgotten, as they count for nothing."""


class Paces:
    """When the next request of each key may begin. For use in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        """Key -> time at which its rate would have allowed everything that was counted."""
        self._most = KEPT
        self._seen: OrderedDict[str, float] = OrderedDict()
        """The two projects that sent the latest requests, and when."""

    def count(self, key_id: str, rate: float, requests: float = 1.0) -> None:
        """Count so many requests of a key that may send `rate` per second."""
        now = self._clock()
        due = max(self._due.get(key_id, 0.0), now) + requests / rate
        self._due[key_id] = min(due, now + BURST_SECONDS + PATIENCE_SECONDS)
        if len(self._due) > self._most:
            self._due = {key: due for key, due in self._due.items() if due > now}
            self._most = max(KEPT, 2 * len(self._due))

    def wait(self, project_id: str, key_id: str) -> float:
        """Seconds until the next request of the key may begin."""
        now = self._clock()
        self._seen[project_id] = now
        self._seen.move_to_end(project_id)
        while len(self._seen) > 2:
            self._seen.popitem(last=False)
        others = max((seen for one, seen in self._seen.items() if one != project_id), default=-math.inf)
        if now - others > ALONE_SECONDS:
            return 0.0
        return max(0.0, self._due.get(key_id, 0.0) - now - BURST_SECONDS)


class Pace:
    """ASGI middleware after authentication: passes a request on when the pace of its key allows it.

    A request that waits counts as open, so that waiting takes no more connections than a project may have. `held` is
    that of OpenRequests, which refuses the request where all are open.
    """

    def __init__(self, app: ASGIApp, defaults: Limits, held: Held) -> None:
        self._app = app
        self._defaults = defaults
        self._held = held
        self._paces = Paces()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its time; its body counts as it arrives."""
        principal = caller_of(scope)
        limits = limits_of(principal.limits, self._defaults) if principal else self._defaults
        if principal is None or limits.requests_per_minute is None:
            await self._app(scope, receive, send)
            return
        rate = max(limits.requests_per_minute / 60, LEAST_RATE)
        seconds = self._paces.wait(principal.project_id, principal.key_id)
        self._paces.count(principal.key_id, rate)
        if seconds and not self._held.all_by(principal.project_id, limits.requests_open):
            with self._held.one(principal.project_id, None, OPEN):
                await asyncio.sleep(seconds)

        async def receive_counted() -> Message:
            message = await receive()
            self._paces.count(principal.key_id, rate, len(message.get("body", b"")) / COUNTED_BYTES)
            return message

        await self._app(scope, receive_counted, send)
