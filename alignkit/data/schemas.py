"""The kind of row that each method takes."""

from typing import TYPE_CHECKING, Any

from alignkit.data.rows import ROW_KINDS, RowKind, row_kind
from alignkit.errors import DataError, MethodError

if TYPE_CHECKING:  # saves torch where rows are only read
    from alignkit.methods import Method


def schema_for(method: "str | type[Method]") -> RowKind[Any]:
    """The kind of row that a method, given as class or name, takes. Raises DataError for an unknown one."""
    from alignkit.methods import get  # saves torch where rows are only read

    try:
        found = get(method) if isinstance(method, str) else method
    except MethodError as error:
        raise DataError(f"unknown method {method!r}: {error}") from error
    if found.rows not in ROW_KINDS:
        raise DataError(
            f"{found.__name__}: expected `rows` to be one of {', '.join(ROW_KINDS)}, found {found.rows!r}"
        )
    return row_kind(found.rows)


def methods_taking(kind: str) -> list[str]:
    """The methods that take a kind of row, given by its name."""
    from alignkit.methods import METHODS  # saves torch where rows are only read

    return [name for name, method in METHODS.items() if method.rows == kind]
