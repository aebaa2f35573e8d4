"""Bodies at the edge: no request but an upload may be large, and no JSON nested deeply."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit_server.errors import ApiError, error_response

STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)")
"""Uploads: their routes write the body to disk as it comes, within a limit of their own."""
MAX_DEPTH = 64
"""Levels of objects and arrays. Nothing that reads a request needs more stack than these."""
DRAIN_BYTES = 64 * 2**20
"""How much of a refused body is still read, so that its sender gets to the answer."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Possessive, and a missing end is let pass, so that no text makes it go back."""
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


class BodyLimit:
    """ASGI middleware: reads the whole body first, or answers 413 or 400."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body read."""
        if scope["type"] != "http" or STREAMED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
            if body is None:
                return  # the client has gone
            refuse_deep(body)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, _after(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None where the client hangs up before its end."""
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            await _drain(receive)
            raise self._too_large()
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                if more:
                    await _drain(receive)
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The request is too large: expected a body of at most {self._max_bytes:,} bytes.",
            code="request_too_large",
        )


def refuse_deep(body: bytes) -> None:
    """Raise ApiError (400) where JSON is nested deeper than MAX_DEPTH; what is no JSON is left to the parser.

    Without its strings and scalars a document is brackets alone, and each pass takes its innermost level away: the
    work is done by bytes.replace, since a loop over the brackets would hold up every other request.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", body).translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(MAX_DEPTH):
        if b"[]" not in brackets:
            break
        brackets = brackets.replace(b"[]", b"")
    # Openings that are left without an end are no JSON, but the parser would follow them all the way down.
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise ApiError(
            400,
            f"The body is nested too deeply: expected at most {MAX_DEPTH} levels of objects and arrays.",
            code="invalid_json",
        )


def _after(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body, and then whatever else the client does."""
    sent = False

    async def receive_read() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_read


async def _drain(receive: Receive) -> None:
    left = DRAIN_BYTES
    while left > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))
