"""References such as `{{item.question}}` in the texts of graders and prompts."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

ITEM = "item"
SAMPLE = "sample"

_REFERENCE = re.compile(r"\{\{([^{}]*)\}\}")
_STEP = re.compile(r"\.([^.\[\]\s]+)|\[(\d+)\]")


class TemplateError(ValueError):
    """A reference that cannot be read, or that names nothing; the message is a sentence without its end."""


def references(text: str) -> Iterator[list[str]]:
    """The paths of all references in `text`, such as ["item", "turns", "0", "content"].

    Raises TemplateError for one that is no path.
    """
    for found in _REFERENCE.finditer(text):
        yield parse(found[1])


def parse(reference: str) -> list[str]:
    """The steps of a reference, such as `item.turns[0].content`. Raises TemplateError if it is no path."""
    written = reference.strip()
    steps = list(_STEP.finditer(f".{written}"))
    if "".join(step[0] for step in steps) != f".{written}":
        raise TemplateError(
            f"expected a reference such as {{{{item.name}}}} or {{{{item.turns[0].content}}}}, found {written[:80]!r}"
        )
    return [step[1] or step[2] for step in steps]


def fill(text: str, scope: Mapping[str, Any]) -> str:
    """`text` with every reference replaced by its value: text as it is, anything else as JSON.

    Raises TemplateError if a value is missing.
    """
    return _REFERENCE.sub(lambda found: _shown(look_up(parse(found[1]), scope)), text)


def look_up(path: list[str], scope: Mapping[str, Any]) -> Any:
    """The value at a path. Raises TemplateError if there is none."""
    value: Any = scope
    for at, step in enumerate(path):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (LookupError, TypeError, ValueError):
            named = ".".join(path[: at + 1])
            raise TemplateError(f"{{{{{'.'.join(path)}}}}}: this row has no {named}") from None
    return value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
