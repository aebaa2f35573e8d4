"""A form of row: the keys by which it is recognised, and its parser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from alignkit.data.nodes import Node, RowError, printable

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Form(Generic[Row]):
    """A recognisable form of row: the keys it must have, those it may have, and its parser."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    parse: Callable[[Node], Row]


def parse_row(row: object, unused: set[str] | None, forms: Sequence[Form[Row]], kind: str) -> Row:
    """A row in the first of `forms` whose keys it has; raises RowError. `kind` of row completes "a … row".

    The names of keys that play no part are added to `unused`.
    """
    node = Node(row, unused=set() if unused is None else unused)
    form = _recognise(node, forms, kind)
    return form.parse(node.as_object("an object", form.required | form.optional))


def _recognise(node: Node, forms: Sequence[Form[Row]], kind: str) -> Form[Row]:
    if not isinstance(node.value, dict):
        raise node.refuse("an object")
    for form in forms:
        if form.required <= node.value.keys():
            return form
    raise _nearest(node, forms, kind)


def _nearest(node: Node, forms: Sequence[Form[Row]], kind: str) -> RowError:
    """The error that helps most: the first key that the row lacks of the form it comes closest to."""
    keys = node.value.keys()
    best = min(forms, key=lambda form: (len(form.required - keys), -len(form.required & keys)))
    if best.required & keys:
        missing = min(best.required - keys)
        return node.at(missing).refuse(f"the key of a row in {best.name}'s form")
    known = "; ".join(f"{form.name}: {', '.join(sorted(form.required))}" for form in forms)
    found = ", ".join(printable(key, 20) for key in sorted(keys)[:6])
    return node.refuse(f"the keys of a {kind} row ({known})", f"the keys {found}" if found else None)
