"""What the rows of each method are. A method with other rows is another schema and an entry in SCHEMAS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from alignkit.data.completion_forms import parse_completion
from alignkit.data.completions import CompletionRow, render_completion
from alignkit.data.dispreferred import (
    DispreferredRow,
    is_idle,
    parse_dispreferred,
    render_dispreferred,
)
from alignkit.data.formats import PreferenceRow, parse_preference
from alignkit.data.messages import Message
from alignkit.data.tokens import TokenSequence, render_pair
from alignkit.errors import DataError

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class RowSchema(Generic[Row]):
    """How a line's value becomes a row, when a row teaches nothing, and what a tokenizer makes of it."""

    parse: Callable[[object, set[str]], Row]
    """Raises RowError; adds the names of keys that play no part to the set."""
    idle: Callable[[Row], bool]
    idle_words: str
    """Completes "12 of 300 rows have …"."""
    prompt: Callable[[Row], list[Message]]
    render: Callable[[Row, Any], list[TokenSequence]]
    """The sequences it is trained on, by a tokenizer's chat template; raises DataError."""


PREFERENCE: RowSchema[PreferenceRow] = RowSchema(
    parse=parse_preference,
    idle=lambda row: row.chosen == row.rejected,
    idle_words="chosen equal to rejected",
    prompt=lambda row: row.prompt,
    render=lambda row, tokenizer: render_pair(row, tokenizer).sequences(),
)
COMPLETION: RowSchema[CompletionRow] = RowSchema(
    parse=parse_completion,
    idle=lambda row: not row.learned,
    idle_words="no turn that carries loss",
    prompt=lambda row: row.prompt,
    render=render_completion,
)
DISPREFERRED: RowSchema[DispreferredRow] = RowSchema(
    parse=parse_dispreferred,
    idle=is_idle,
    idle_words="no sample but the dispreferred answer itself",
    prompt=lambda row: row.prompt,
    render=render_dispreferred,
)
SCHEMAS: dict[str, RowSchema[Any]] = {
    "f_dpo": PREFERENCE,
    "dpo": PREFERENCE,
    "d2o": DISPREFERRED,
    "supervised": COMPLETION,
    "sinkd": COMPLETION,
    "bd_kd": COMPLETION,
}


def schema_for(method: str) -> RowSchema[Any]:
    """The rows of a method; raises DataError for an unknown one."""
    if method not in SCHEMAS:
        raise DataError(f"unknown method {method!r}: expected one of {', '.join(SCHEMAS)}")
    return SCHEMAS[method]
