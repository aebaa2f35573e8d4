"""Turns of projects at the event loop and its threads, so that one project's many requests hold up no other's."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit_server.keys.service import caller_of
from alignkit_server.limits.turns import Load, Turn, Turns, current_turn

AT_ONCE = 4
"""Requests worked on at once. Python runs one thread at a time, so more would only delay each other."""
ONE = Load(1)


class RequestTurns:
    """ASGI middleware after authentication: begins a request when it is its project's turn.

    The turn lasts until the answer begins, so that streams and downloads need none, or the route calls `end_turn`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its turn."""
        principal = caller_of(scope)
        if principal is None:  # a path that needs no key
            await self._app(scope, receive, send)
            return
        await self._turns.take(principal.project_id, ONE)
        turn = Turn(lambda: self._turns.release(principal.project_id, ONE))
        before = current_turn.set(turn)

        async def send_without_turn(message: Message) -> None:
            turn.end()
            await send(message)

        try:
            await self._app(scope, receive, send_without_turn)
        finally:
            current_turn.reset(before)
            turn.end()
