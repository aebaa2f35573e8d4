"""Bodies at the edge: no request but an upload may be large, and no JSON nested deeply or made of too many values.

Everything here is counted before anything is parsed, at a cost that does not grow with what the JSON holds: parsing
and validating take time on the event loop that all requests share.
"""

import re
from dataclasses import dataclass

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit_server.errors import ApiError, error_response

STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)")
"""Uploads: their routes write the body to disk as it comes, within a limit of their own."""
LARGE = re.compile(
    r"/v1/(chat/completions|completions|fine_tuning/(jobs|preview|jobs/estimate)|uploads/[^/]+/complete)"
)
"""Requests that may have more than SMALL_BYTES to say."""
PROMPTS = re.compile(r"/v1/(chat/)?completions")
"""Requests that may hold prompts as token ids."""
SMALL_BYTES = 64 * 2**10
THREAD_BYTES = 256 * 2**10
"""A larger body is looked at in a thread."""
MAX_DEPTH = 64
"""Levels of objects and arrays. Nothing that reads a request needs more stack than these."""
DRAIN_BYTES = 64 * 2**20
"""How much of a refused body is still read, so that its sender gets to the answer."""

_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many values, and how many objects and arrays, a body may hold."""

    values: int
    containers: int


FORM = Counts(values=12_000, containers=2_000)
"""The most is asked by the end of an upload in parts: 10,000 ids."""
PROMPT = Counts(values=200_000, containers=10_000)


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
        path = scope["path"]
        most = self._max_bytes if LARGE.fullmatch(path) else min(SMALL_BYTES, self._max_bytes)
        counts = PROMPT if PROMPTS.fullmatch(path) else FORM
        try:
            body = await _read(Headers(scope=scope), receive, most)
            if body is None:
                return  # the client has gone
            if len(body) > THREAD_BYTES:
                await to_thread.run_sync(refuse_shape, body, counts)
            else:
                refuse_shape(body, counts)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, _after(body, receive), send)


async def _read(headers: Headers, receive: Receive, most: int) -> bytes | None:
    """The body of at most `most` bytes; None where the client hangs up before its end."""
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
    """Raise ApiError (400) where JSON is nested deeper than MAX_DEPTH, or holds more than `counts`.

    What is no JSON is left to the parser, which comes to no more of it than was counted here: up to the first
    mistake both see the same strings.
    """
    if (
        b"\x00" in body
    ):  # in no JSON of UTF-8; the parser would take UTF-16 and UTF-32, which nothing here counts
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
    """JSON without its strings, up to the end of the first `most` of them, and whether that is all."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = plain.split(b'"', 2 * most)
    return b"".join(parts[: 2 * most : 2]), len(parts) <= 2 * most


def _refuse_deep(brackets: bytes) -> None:
    """Refuse a document, of which only the brackets are left: each pass takes its innermost level away."""
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


def _too_many(most: int, what: str) -> ApiError:
    return ApiError(
        400, f"The body holds too much: expected at most {most:,} {what}.", code="request_too_large"
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
