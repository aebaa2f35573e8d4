"""What the rows of each method are. A method with other rows is another schema and an entry in SCHEMAS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from alignkit.data.formats import PreferenceRow, parse_preference
from alignkit.errors import DataError

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class RowSchema(Generic[Row]):
    """How a line's value becomes a row, and when a row teaches nothing."""

    parse: Callable[[object, set[str]], Row]
    """Raises RowError; adds the names of keys that play no part to the set."""
    idle: Callable[[Row], bool]
    idle_words: str
    """Completes "12 of 300 rows have …"."""


PREFERENCE: RowSchema[PreferenceRow] = RowSchema(
    parse=parse_preference,
    idle=lambda row: row.chosen == row.rejected,
    idle_words="chosen equal to rejected",
)
SCHEMAS: dict[str, RowSchema[Any]] = {"f_dpo": PREFERENCE, "dpo": PREFERENCE}


def schema_for(method: str) -> RowSchema[Any]:
    """The rows of a method; raises DataError for an unknown one."""
    if method not in SCHEMAS:
        raise DataError(f"unknown method {method!r}: expected one of {', '.join(SCHEMAS)}")
    return SCHEMAS[method]
