"""Hints for refused rows: the kind of row they look like, and the methods that take that kind."""

from typing import Any

from alignkit.data.nodes import RowError
from alignkit.data.rows import ROW_KINDS, RowKind
from alignkit.data.schemas import methods_taking


def looks_like(value: Any, wanted: RowKind[Any]) -> str | None:
    """A sentence about the form of another kind that the value has, and the methods that take it.

    None if the value has the keys of a form of the wanted kind, or is in no known form.
    """
    if not isinstance(value, dict) or any(form.required <= value.keys() for form in wanted.forms):
        return None
    for kind in ROW_KINDS.values():
        methods = methods_taking(kind.name)
        if kind is wanted or not methods:
            continue
        try:
            kind.parse(value)
        except RowError:
            continue
        form = next(form.name for form in kind.forms if form.required <= value.keys())
        return (
            f"the rows look like {form}'s form of {kind.name} rows, which the method{'s' if methods[1:] else ''} "
            f"{', '.join(methods)} take{'' if methods[1:] else 's'}; this method takes {wanted.name} rows"
        )
    return None
