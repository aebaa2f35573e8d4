"""Rows as tables and scripts export them: conversations written as text, and media beside the text."""

import re
from typing import Any

from alignkit.data.decoding import decode_text
from alignkit.data.messages import hh_turns
from alignkit.data.nodes import Node, RowError, describe

MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
"""Keys of media that belong to a row."""
_PYTHON = re.compile(r"\s*\[\s*\{\s*'(role|from|content|value)'\s*:")
"""The start of messages as Python prints them."""
_HH_PROMPT = re.compile(r"(\s*Human:.*\S)\s*\n\r?\nAssistant:\s*", re.DOTALL)
"""A prompt in the plain text of Anthropic's HH data, which its answers continue."""


def written_out(row: Any) -> Any:
    """The row, in which text that is a JSON array of messages, or a prompt in HH's plain text, becomes messages.

    Raises RowError for messages in Python's notation, which would be trained as text, and for media, without which
    the text means something else.
    """
    if not isinstance(row, dict):
        return row
    for key in MEDIA & row.keys():
        if row[key]:
            raise RowError(f"/{key}", "text alone, because media cannot be trained on", describe(row[key]))
    row = _without_speakers(row)
    texts = {key: text for key, text in row.items() if isinstance(text, str) and text.lstrip()[:1] == "["}
    return row | {key: _messages(key, text) for key, text in texts.items()} if texts else row


def _without_speakers(row: dict[Any, Any]) -> dict[Any, Any]:
    """The row with its prompt's turns as messages, and its answers without the space after `Assistant:`."""
    prompt = row.get("prompt")
    found = _HH_PROMPT.fullmatch(prompt) if isinstance(prompt, str) else None
    if found is None:
        return row
    turns = hh_turns(Node(found[1], Node(row), "prompt"))
    answers = {key: text.strip() for key in _ANSWERS if isinstance(text := row.get(key), str)}
    return row | {"prompt": [turn.value for turn in turns]} | answers


_ANSWERS = ("chosen", "rejected", "completion")


def _messages(key: str, text: str) -> Any:
    """The messages in a JSON text; the text itself if it is anything else."""
    if _PYTHON.match(text):
        raise RowError(f"/{key}", "messages, or their JSON text", "messages in Python's notation")
    try:
        found = decode_text(text)
    except RowError:
        return text
    return found if isinstance(found, list) and found and all(map(_is_message, found)) else text


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )
