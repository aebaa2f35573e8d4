"""The kind of row that each method takes."""

from typing import Any

from alignkit.data.rows import RowKind, row_kind
from alignkit.errors import DataError

ROWS_OF_METHODS = {
    "f_dpo": "preference",
    "dpo": "preference",
    "d2o": "dispreferred",
    "supervised": "completion",
    "sinkd": "completion",
    "bd_kd": "completion",
}


def schema_for(method: Any) -> RowKind[Any]:
    """The kind of row that a method takes, given its name or its class; raises DataError for an unknown one."""
    if not isinstance(method, str):
        return row_kind(method.rows)
    if method not in ROWS_OF_METHODS:
        raise DataError(f"unknown method {method!r}: expected one of {', '.join(ROWS_OF_METHODS)}")
    return row_kind(ROWS_OF_METHODS[method])


def methods_taking(kind: str) -> list[str]:
    """The methods whose rows are of a kind, given its name."""
    return [method for method, rows in ROWS_OF_METHODS.items() if rows == kind]
