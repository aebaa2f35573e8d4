"""JSON values that know their place inside a row, so that every error names it."""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

MAX_UNUSED_NAMES = 100
MAX_DEPTH = 64

ABSENT: Any = type("Absent", (), {"__repr__": lambda _: "ABSENT"})()
"""The value of a key that an object does not have."""


class RowError(Exception):
    """A refused row: the place (JSON pointer), what was expected, and what was found."""

    def __init__(self, pointer: str, expected: str, found: str) -> None:
        self.pointer = pointer
        self.expected = expected
        self.found = found
        super().__init__(f"{pointer or '/'}: expected {expected}, found {found}")


def printable(text: str, limit: int = 40) -> str:
    """`text` shortened and on one line, with characters escaped that a terminal or UTF-8 encoder cannot take."""
    return repr(text[:limit])[1:-1] + ("…" if len(text) > limit else "")


def describe(value: object) -> str:
    """A short description of the value found, never its whole content."""
    if isinstance(value, str):
        return f"the text '{printable(value)}'" if value else "an empty text"
    if isinstance(value, dict):
        return "an object" if value else "an object without entries"
    if isinstance(value, list):
        return "an array" if value else "an array without entries"
    if value is ABSENT:
        return "a missing key"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"the number {str(value)[:20]}"


@dataclass(slots=True)
class Node:
    """A JSON value, its place in the row, and the keys of the row that were not used."""

    value: Any
    inside: "Node | None" = None
    key: str | int = ""
    unused: set[str] = field(default_factory=set)

    @property
    def pointer(self) -> str:
        """The JSON pointer from the row's root. Computed on demand, because valid rows rarely need it."""
        return "" if self.inside is None else f"{self.inside.pointer}/{self.key}"

    @property
    def given(self) -> bool:
        """Whether there is a value other than null."""
        return self.value is not ABSENT and self.value is not None

    def refuse(self, expected: str, found: str | None = None) -> RowError:
        """The RowError for this place."""
        return RowError(self.pointer, expected, describe(self.value) if found is None else found)

    def as_object(self, expected: str, keys: frozenset[str]) -> "Node":
        """This node, if it is an object, else raises RowError. Keys outside `keys` are recorded as unused."""
        if not isinstance(self.value, dict):
            raise self.refuse(expected)
        if not self.value.keys() <= keys:
            self._remember(self.value.keys() - keys)
        return self

    def _remember(self, names: set[str]) -> None:
        place = re.sub(r"/\d+", "/*", self.pointer)
        for name in sorted(names)[: max(0, MAX_UNUSED_NAMES - len(self.unused))]:
            self.unused.add(f"{place}/{printable(name)}" if place else printable(name))

    def at(self, key: str) -> "Node":
        """The value under `key` of an object; ABSENT if the key is missing."""
        return Node(self.value.get(key, ABSENT), self, key, self.unused)

    def has(self, key: str) -> bool:
        """Whether an object has a value other than null under `key`."""
        return self.value.get(key) is not None

    def leave(self, keys: frozenset[str]) -> None:
        """Record as unused those of `keys` that have a non-empty value."""
        if not keys.isdisjoint(self.value) and (left := {key for key in keys if self.value.get(key)}):
            self._remember(left)

    def holding(self, value: Any) -> "Node":
        """The same place with `value`, which was derived from the value there."""
        return Node(value, self.inside, self.key, self.unused)

    def entries(self, expected: str) -> list["Node"]:
        """The elements of an array. Raises RowError if it is not an array, or empty."""
        if not isinstance(self.value, list) or not self.value:
            raise self.refuse(expected)
        return [Node(value, self, index, self.unused) for index, value in enumerate(self.value)]

    def text(self, expected: str = "non-blank text") -> str:
        """A non-blank string that can be encoded as UTF-8. Raises RowError otherwise."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.refuse(expected)
        if not _encodable(self.value):
            raise self.refuse("valid Unicode", "half of a surrogate pair")
        return self.value

    def plain(self) -> Any:
        """The value unchanged, after checking that every later stage can encode it. Raises RowError."""
        level = [self.value]
        for _ in range(MAX_DEPTH):
            if not level:
                return self.value
            level = [inner for value in level for inner in self._inside(value)]
        raise self.refuse(f"at most {MAX_DEPTH} levels of nesting", "more")

    def _inside(self, value: object) -> list[object]:
        if isinstance(value, str) and not _encodable(value):
            raise self.refuse("valid Unicode", "half of a surrogate pair")
        if isinstance(value, int | float) and not _portable(value):
            raise self.refuse("numbers that fit in 64 bits", f"the number {str(value)[:20]}")
        if isinstance(value, dict):
            return [*value, *value.values()]
        return value if isinstance(value, list) else []


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _portable(number: float) -> bool:
    return math.isfinite(number) if isinstance(number, float) else -(2**63) <= number < 2**63
