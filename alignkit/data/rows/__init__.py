"""The kinds of row, by the name in a method's `rows`; one file each, with record, forms and rendering."""

from typing import Any

from alignkit.data.rows.completion import COMPLETION, CompletionRow, parse_completion
from alignkit.data.rows.dispreferred import DISPREFERRED, DispreferredRow, parse_dispreferred
from alignkit.data.rows.labelled import LABELLED, LabelledRow, parse_labelled
from alignkit.data.rows.preference import PREFERENCE, PreferenceRow, parse_preference
from alignkit.data.rows.recognise import Form, Record, Row, RowKind
from alignkit.errors import DataError

__all__ = [
    "COMPLETION",
    "DISPREFERRED",
    "LABELLED",
    "PREFERENCE",
    "ROW_KINDS",
    "CompletionRow",
    "DispreferredRow",
    "Form",
    "LabelledRow",
    "PreferenceRow",
    "Record",
    "Row",
    "RowKind",
    "parse_completion",
    "parse_dispreferred",
    "parse_labelled",
    "parse_preference",
    "row_kind",
]

KINDS: tuple[RowKind[Any], ...] = (
    PREFERENCE,
    COMPLETION,
    DISPREFERRED,
    LABELLED,
)
ROW_KINDS = {kind.name: kind for kind in KINDS}


def row_kind(name: str) -> RowKind[Any]:
    """The kind of row with this name. Raises DataError for an unknown one."""
    if name not in ROW_KINDS:
        raise DataError(f"unknown kind of row {name!r}: expected one of {', '.join(ROW_KINDS)}")
    return ROW_KINDS[name]
