"""Gives each request an id, logs its outcome, and turns a defect into an error that a client can quote."""

import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit_server.errors import error_response, outage_error, server_error

HEADER = "x-request-id"
QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
NO_ROUTE = "none"
Observe = Callable[[str, str, int, float], None]
"""Callback (method, route, status, seconds) for each finished request."""
_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger()


class RequestLog:
    """The outermost ASGI middleware. Bodies, queries and headers are never logged."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        """`observe` is called for each finished request, with the template of its path."""
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application and put the request id in a response header."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _GIVEN.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        status, start = 0, time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                log.exception("request failed", method=scope["method"], path=scope["path"])
                if status:  # too late for an error response: the server closes the connection
                    raise
                answer = outage_error(error) or server_error(request_id)
                await error_response(answer)(scope, receive, send_with_id)
            finally:
                seconds = time.monotonic() - start
                self._observe(scope["method"], _route(scope), status, seconds)
                if scope["path"] not in QUIET_PATHS:
                    milliseconds = round(1000 * seconds, 1)
                    log.info(
                        "request", method=scope["method"], path=scope["path"], status=status, ms=milliseconds
                    )


def _route(scope: Scope) -> str:
    """The path template of the matched route, or NO_ROUTE if none matched."""
    path: str = getattr(scope.get("route"), "path", NO_ROUTE)
    return path
