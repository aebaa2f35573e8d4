"""Whether a rendered text holds each part of a message: the text, the reasoning and the tool calls."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from alignkit.data.messages import Message

THINK = re.compile(r"</?think>")
"""The tags around reasoning."""
REASONING, TEXT, CALL = "the reasoning", "the text", "a tool call"


def missing_part(answer: Iterable[Message], text: str) -> tuple[str, str] | None:
    """The first part of an answer that is missing in its rendered text, as (kind, part); None if complete.

    Whitespace is ignored, because templates trim texts. Parts are searched in order.
    """
    rest = squeezed(text)
    for message in answer:
        for kind, part in _parts(message):
            at = _place_of(part, rest)
            if at < 0 and not part.isascii():  # a tokenizer may have normalised it
                part, rest = _normalised(part), _normalised(rest)  # noqa: PLW2901 - the same text
                at = _place_of(part, rest)
            if kind == CALL:  # each template quotes arguments differently
                if at < 0 and not all(word in rest for word in re.findall(r"\w+", part)):
                    return kind, part
                continue
            if at < 0:
                return kind, part
            rest = rest[at:].removeprefix(squeezed(part))
    return None


def _parts(message: Message) -> Iterator[tuple[str, str]]:
    """The parts of a message that a template must render."""
    if message.get("reasoning_content"):
        yield REASONING, str(message["reasoning_content"])
    *thoughts, said = THINK.split(str(message.get("content") or ""))
    yield from ((REASONING, thought) for thought in thoughts if thought.strip())
    if said.strip():
        yield TEXT, said
    for call in message.get("tool_calls", ()):
        function = call.get("function", call)
        yield CALL, str(function["name"])
        yield from ((CALL, leaf) for leaf in _leaves(function.get("arguments")) if leaf.strip())


def context_parts(message: Message) -> Iterator[str]:
    """The parts of a context message that a template should render; earlier reasoning is omitted by design."""
    said = THINK.split(str(message.get("content") or ""))[-1]
    if said.strip():
        yield said
    yield from (str(call.get("function", call)["name"]) for call in message.get("tool_calls", ()))


def _leaves(value: Any) -> Iterator[str]:
    """The keys and strings inside a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def is_in(part: str, squeezed_text: str) -> bool:
    """Whether a part occurs in a text from which `squeezed` took the whitespace."""
    if _place_of(part, squeezed_text) >= 0:
        return True
    return not part.isascii() and _place_of(_normalised(part), _normalised(squeezed_text)) >= 0


def _place_of(part: str, squeezed_text: str) -> int:
    """The position of the first form of a part that occurs in a squeezed text; -1 if none does."""
    return next((at for form in _forms(part) if (at := squeezed_text.find(form)) >= 0), -1)


def _normalised(text: str) -> str:
    """A text without differences that a tokenizer's Unicode normalisation removes."""
    return squeezed(unicodedata.normalize("NFKC", text))


def _forms(part: str) -> list[str]:
    """A text as is and as JSON writes it inside quotes, both without whitespace."""
    written = (json.dumps(part, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return list(dict.fromkeys(map(squeezed, (part, *written))))


def squeezed(text: str) -> str:
    """A text without whitespace."""
    return "".join(text.split())
