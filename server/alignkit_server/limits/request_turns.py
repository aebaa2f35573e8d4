"""Turns of projects at the event loop and its threads, so that one project's many requests hold up no other's."""

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit_server.keys.service import Principal
from alignkit_server.limits.turns import Load, Turns

AT_ONCE = 4
"""Requests worked on at once. Python runs one thread at a time, so more would only delay each other."""
TURN_SECONDS = 0.1
"""After which a request goes on without its turn: it waits for something else, such as a file, a peer or a body."""
ONE = Load(1)


class RequestTurns:
    """ASGI middleware after authentication: begins a request when it is its project's turn.

    The turn lasts until the answer begins, so that streams and downloads need none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its turn."""
        state = scope.get("state", {})
        principal: Principal | None = state.get("principal")
        if principal is None:  # a path that needs no key
            await self._app(scope, receive, send)
            return
        await self._turns.take(principal.project_id, ONE)
        turn = state["turn"] = Turn(lambda: self._turns.release(principal.project_id, ONE))

        async def send_without_turn(message: Message) -> None:
            turn.end()
            await send(message)

        try:
            await self._app(scope, receive, send_without_turn)
        finally:
            turn.end()


def end_turn(request: Request) -> None:
    """Let another request begin, for a route that is going to wait; does nothing where no turn was needed."""
    turn: Turn | None = request.scope.get("state", {}).get("turn")
    if turn is not None:
        turn.end()


class Turn:
    """One request's turn."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release
        self._timer = asyncio.get_running_loop().call_later(TURN_SECONDS, self.end)

    def end(self) -> None:
        """Let another request begin; does nothing the second time."""
        self._timer.cancel()
        release, self._release = self._release, None
        if release is not None:
            release()
