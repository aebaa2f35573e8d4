"""Limits for request bodies: only uploads may be large, and JSON may not be deeply nested or have too many values.

Everything is counted before parsing, at a cost that does not depend on the JSON's content, because parsing and
validation take time on the event loop that all requests share.
"""

import re
from dataclasses import dataclass

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit_server.errors import ApiError, error_response

STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)")
"""Uploads: their routes stream the body to disk, within their own limit."""
LARGE = re.compile(
    r"/v1/(chat/completions|completions|responses|fine_tuning/(jobs|preview|jobs/estimate)|uploads/[^/]+/complete"
    r"|evals/[^/]+/runs)"
)
"""Requests whose body may exceed SMALL_BYTES."""
PROMPTS = re.compile(r"/v1/(chat/)?completions")
"""Requests that may contain prompts as token ids."""
SMALL_BYTES = 64 * 2**10
THREAD_BYTES = 256 * 2**10
"""Size above which a body is checked in a thread."""
MAX_DEPTH = 64
"""Maximum nesting of objects and arrays; parsing and validation need no more stack than that."""
DRAIN_BYTES = 64 * 2**20
"""Bytes of a refused body that are still read, so that the client gets to read the answer."""

_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Counts:
    """Maximum number of values, and of objects and arrays, in a body."""

    values: int
    containers: int


FORM = Counts(values=12_000, containers=2_000)
"""Limits of bodies without prompts; the largest one completes an upload in parts, with 10,000 ids."""
PROMPT = Counts(values=200_000, containers=10_000)


class BodyLimit:
    """ASGI middleware: reads the whole body first, or answers 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body and pass the request on."""
        if scope["type"] != "http" or STREAMED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        most = self._max_bytes if LARGE.fullmatch(scope["path"]) else min(SMALL_BYTES, self._max_bytes)
        try:
            body = await _read(Headers(scope=scope), receive, most)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is not None:  # else the client disconnected
            await self._app(scope, _after(body, receive), send)


class BodyShape:
    """ASGI middleware after BodyLimit, for what takes time on a body that was read: answers 400 by its shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the body and pass the request on."""
        if scope["type"] != "http" or STREAMED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        counts = PROMPT if PROMPTS.fullmatch(scope["path"]) else FORM
        body = (await receive())["body"]
        try:
            if len(body) > THREAD_BYTES:
                await to_thread.run_sync(refuse_shape, body, counts)
            else:
                refuse_shape(body, counts)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, _after(body, receive), send)


async def _read(headers: Headers, receive: Receive, most: int) -> bytes | None:
    """The body, of at most `most` bytes; None if the client disconnects before its end."""
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        await _drain(receive)
        raise _too_large(most)
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            if more:
                await _drain(receive)
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"The request is too large: expected a body of at most {most:,} bytes.",
        code="request_too_large",
    )


def refuse_shape(body: bytes, counts: Counts) -> None:
    """Raise ApiError (400) if JSON is nested deeper than MAX_DEPTH, or has more values than `counts`.

    Invalid JSON is left to the parser. It stops at the first mistake, and up to there both see the same strings. It
    therefore never handles more than was counted here.
    """
    if (
        b"\x00" in body
    ):  # never in UTF-8 JSON; the parser would also accept UTF-16 and UTF-32, which this does not count
        raise ApiError(400, "The body is not valid JSON: expected UTF-8 without NUL.", code="invalid_json")
    containers = body.count(b"[") + body.count(b"{")
    if body.count(b",") < counts.values and containers <= MAX_DEPTH:
        return
    outside, whole = _without_strings(body, 2 * counts.values)
    brackets = outside.translate(_ONE_KIND, _NO_BRACKET)
    _refuse_deep(brackets[: 2 * counts.containers])
    if not whole or outside.count(b",") >= counts.values:
        raise _too_many(counts.values, "values")
    if brackets.count(b"[") > counts.containers:
        raise _too_many(counts.containers, "objects and arrays")


def _without_strings(body: bytes, most: int) -> tuple[bytes, bool]:
    """JSON without the contents of its first `most` strings, and whether that is the whole document."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = plain.split(b'"', 2 * most)
    return b"".join(parts[: 2 * most : 2]), len(parts) <= 2 * most


def _refuse_deep(brackets: bytes) -> None:
    """Refuse a document, given as its brackets only; each pass removes the innermost level."""
    for _ in range(MAX_DEPTH):
        if b"[]" not in brackets:
            break
        brackets = brackets.replace(b"[]", b"")
    # Unclosed brackets are invalid JSON, but the parser would follow them all the way down.
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise ApiError(
            400,
            f"The body is nested too deeply: expected at most {MAX_DEPTH} levels of objects and arrays.",
            code="invalid_json",
        )


def _too_many(most: int, what: str) -> ApiError:
    return ApiError(
        400, f"The body is too complex: expected at most {most:,} {what}.", code="request_too_large"
    )


def _after(body: bytes, receive: Receive) -> Receive:
    """A `receive` for the application: first the body that was read, then further messages of the client."""
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
