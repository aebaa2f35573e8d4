"""Limits how many requests of one project are answered at once, however long each takes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from alignkit_server.errors import ApiError, error_response
from alignkit_server.keys.service import caller_of
from alignkit_server.limits.quotas import limits_of
from alignkit_server.settings import Limits

OPEN = "requests of this project"


class Held:
    """Counts what each of several owners holds. For use in one event loop."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def all_by(self, owner: str, most: int | None) -> bool:
        """Whether the owner already holds `most`."""
        return most is not None and self._held[owner] >= most

    @contextmanager
    def one(self, owner: str, most: int | None, what: str) -> Iterator[None]:
        """Hold one more during the context. Raises 429 if the owner already holds `most`."""
        if self.all_by(owner, most):
            raise ApiError(
                429,
                f"Too many {what} at once: the limit is {most:,}, and all are open. Wait for one to end.",
                type="requests",
                code="rate_limit_exceeded",
                headers={"retry-after": "1"},
            )
        self._held[owner] += 1
        try:
            yield
        finally:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]


class OpenRequests:
    """ASGI middleware after authentication: passes a request on, or answers 429 if the project has too many open."""

    def __init__(self, app: ASGIApp, defaults: Limits, held: Held) -> None:
        self._app = app
        self._defaults = defaults
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within the project's limit."""
        principal = caller_of(scope)
        if principal is None:  # a path that needs no key
            await self._app(scope, receive, send)
            return
        most = limits_of(principal.limits, self._defaults).requests_open
        try:
            with self._held.one(principal.project_id, most, OPEN):
                await self._app(scope, receive, send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
