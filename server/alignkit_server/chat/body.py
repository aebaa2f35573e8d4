"""What the service reads of a completion request before it passes the very same bytes on."""

import json
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from starlette.requests import Request

from alignkit_server.errors import ApiError, shorten
from alignkit_server.limits.body import THREAD_BYTES

MAX_BODY_BYTES = 16 * 2**20

REFUSED_KEYS = {
    "chat_template": "messages are rendered with the model's own template",
    "prompt_embeds": "prompts are text or token ids",
    "kv_transfer_params": "it is not for clients",
    "ec_transfer_params": "it is not for clients",
    "vllm_xargs": "it is not for clients",
    "mm_processor_kwargs": "only text is served",
    "media_io_kwargs": "only text is served",
    "request_id": "ids are given by the service",
    "priority": "it is not for clients",
}
"""Engine options that reach further than one request of one client; null is let through."""
REFUSED_TEMPLATE_KEYS = ("chat_template", "tokenize")
TEXT_PARTS = frozenset({"text", "refusal", "input_text", "output_text", "thinking"})
"""The others would make the engine fetch a URL of the client's choice."""


@dataclass(frozen=True, slots=True)
class CompletionBody:
    """A request's bytes as they came, and the model they name."""

    raw: bytes
    model: str


async def read_body(request: Request) -> CompletionBody:
    """The request's body, checked. Raises ApiError (400 or 413)."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            raise ApiError(413, f"The request is too large: expected at most {MAX_BODY_BYTES} bytes.")
    raw = bytes(received)
    return await to_thread.run_sync(parse_body, raw) if len(raw) > THREAD_BYTES else parse_body(raw)


def parse_body(raw: bytes) -> CompletionBody:
    """Check `raw` as far as the service must know it; the engine checks the rest. Raises ApiError (400)."""
    try:
        body = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = (
            error
            if isinstance(error, json.JSONDecodeError)
            else "it is not UTF-8, nests or counts without end"
        )
        raise ApiError(400, f"The body is not valid JSON: {why}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body: expected a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model or not model.isprintable():
        raise ApiError(400, f"model: expected the name of a model, found {shorten(model)}.", param="model")
    _refuse_keys(body)
    _refuse_media(body)
    return CompletionBody(raw, model)


def _refuse_keys(body: dict[str, Any]) -> None:
    for key, reason in REFUSED_KEYS.items():
        if body.get(key) is not None:
            raise ApiError(400, f"{key} cannot be set: {reason}.", param=key)
    template_options = body.get("chat_template_kwargs")
    for key in REFUSED_TEMPLATE_KEYS:
        if isinstance(template_options, dict) and key in template_options:
            param = f"chat_template_kwargs.{key}"
            raise ApiError(400, f"{param} cannot be set: {REFUSED_KEYS['chat_template']}.", param=param)


def _refuse_media(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        for position, part in enumerate(content if isinstance(content, list) else []):
            if isinstance(part, dict) and str(part.get("type")) not in TEXT_PARTS:
                param = f"messages[{number}].content[{position}].type"
                expected = "expected 'text', since only text is served"
                raise ApiError(400, f"{param}: {expected}; found {shorten(part.get('type'))}.", param=param)
