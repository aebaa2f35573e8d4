"""The parts of a completion request that the service reads before it passes the bytes to the engine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from starlette.requests import Request

from alignkit_server.chat.options import OPTIONS, Check, Demand, check_options
from alignkit_server.errors import ApiError, shorten
from alignkit_server.limits.body import THREAD_BYTES

Options = Mapping[str, Check | None]
MAX_BODY_BYTES = 16 * 2**20

TEXT_PARTS = frozenset(
    {"text", "reasoning_text", "summary_text", "refusal", "input_text", "output_text", "thinking"}
)
"""Allowed content parts; others would make the engine fetch a URL chosen by the client."""


@dataclass(frozen=True, slots=True)
class CompletionBody:
    """A request's original bytes, the model they name and their demand on the engine."""

    raw: bytes
    model: str
    demand: Demand

    def salted(self, salt: str, own: Mapping[str, Any] | None = None) -> bytes:
        """The bytes for the engine: the original ones plus a salt for the engine's prefix cache.

        Without a salt, the time to answer would reveal whether another project has sent the same prompt before.
        `own` are the model's own options, if it differs from its engine's. A client's take precedence.
        """
        ours = {"cache_salt": salt, **(own or {})}
        return (
            json.dumps(ours, separators=(",", ":"))[:-1].encode()
            + b","
            + self.raw[self.raw.index(b"{") + 1 :]
        )


async def read_body(request: Request, options: Options = OPTIONS) -> CompletionBody:
    """Read the request's body and check it against its `options`. Raises ApiError (400 or 413)."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            raise ApiError(413, f"The request is too large: expected at most {MAX_BODY_BYTES} bytes.")
    raw = bytes(received)
    if len(raw) > THREAD_BYTES:
        return await to_thread.run_sync(parse_body, raw, options)
    return parse_body(raw, options)


def parse_body(raw: bytes, options: Options = OPTIONS) -> CompletionBody:
    """Check the parts of `raw` that the service must know; the engine checks the rest. Raises ApiError (400)."""
    try:
        body = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = (
            error
            if isinstance(error, json.JSONDecodeError)
            else "it is not UTF-8, or nested too deeply, or has a number that is too long"
        )
        raise ApiError(400, f"The body is not valid JSON: {why}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body: expected a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model or not model.isprintable():
        raise ApiError(400, f"model: expected the name of a model, found {shorten(model)}.", param="model")
    demand = check_options(body, options)
    _refuse_media(body)
    return CompletionBody(raw, model, demand)


def _refuse_media(body: dict[str, Any]) -> None:
    for name in ("messages", "input"):
        turns = body.get(name)
        for number, turn in enumerate(turns if isinstance(turns, list) else []):
            content = turn.get("content") if isinstance(turn, dict) else None
            for position, part in enumerate(content if isinstance(content, list) else []):
                if isinstance(part, dict) and str(part.get("type")) not in TEXT_PARTS:
                    param = f"{name}[{number}].content[{position}].type"
                    expected = "expected 'text', since only text is served"
                    raise ApiError(
                        400, f"{param}: {expected}; found {shorten(part.get('type'))}.", param=param
                    )
