"""Recognition of rows: forms, recognised by their keys, and kinds of row with their forms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from alignkit.data.messages import Message
from alignkit.data.nodes import Node, RowError, printable
from alignkit.data.rows.written import written_out
from alignkit.data.tokens import TokenSequence


class Record(Protocol):
    """The interface of parsed rows of any kind."""

    @property
    def prompt(self) -> list[Message]:
        """The messages before the first one that carries loss."""

    @property
    def loss_turns(self) -> list[Message]:
        """The messages that carry loss."""

    @property
    def has_no_signal(self) -> bool:
        """Whether training on the row has no effect, judged by its messages."""

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """The sequences to train on, rendered with the model's chat template. Raises DataError."""


GROUP = "group"
"""The key, and the field of a record, that names a row's group in every form."""

Row = TypeVar("Row", bound=Record)


@dataclass(frozen=True, slots=True)
class Form(Generic[Row]):
    """A form of row: the keys it must have, the keys it may have, and its parser."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    parse: Callable[[Node], Row]


@dataclass(frozen=True, slots=True)
class RowKind(Generic[Row]):
    """A kind of row: its record, the forms it may have in a file, and the dataset columns it becomes."""

    name: str
    record: type[Row]
    forms: tuple[Form[Row], ...]
    """All forms in the order of matching: a form whose keys include another's comes first."""
    no_signal_words: str
    """The end of the sentence "12 of 300 rows have …"."""
    has_no_signal: Callable[[Sequence[TokenSequence]], bool]
    """Function that tells whether the sequences, truncated as in training, have no effect."""
    columns: Callable[[Sequence[TokenSequence]], list[dict[str, Any]]]
    """Function that makes the trainer's dataset rows from a row's sequences, all of which have loss tokens."""

    together: bool = False
    """Whether a row's sequences are kept or dropped together, whatever their lengths."""
    needed: tuple[str, ...] = ()
    """Fields of the record, each of which at least one row of a file must have."""

    def trained(self, sequences: Sequence[TokenSequence], max_length: int | None) -> list[TokenSequence]:
        """The sequences of a row to train on, cut to `max_length`; empty if no loss token is within it."""
        kept = [one for one in sequences if not one.dropped_at(max_length)]
        return [one.cut_to(max_length) for one in (sequences if kept and self.together else kept)]

    def parse(self, value: object, unused: set[str] | None = None) -> Row:
        """The row of a JSON value. Raises RowError. Adds the names of unused keys to `unused`."""
        return parse_row(value, unused, self.forms, self.name)


def parse_row(row: object, unused: set[str] | None, forms: Sequence[Form[Row]], kind: str) -> Row:
    """A row in the first of `forms` whose keys it has. Raises RowError. `kind` completes "a … row".

    Names of unused keys are added to `unused`.
    """
    node = Node(written_out(row), unused=set() if unused is None else unused)
    form = _recognise(node, forms, kind)
    found = form.parse(node.as_object("an object", form.required | form.optional | {GROUP}))
    if not node.has(GROUP) or not hasattr(found, GROUP):
        return found
    group: Any = {GROUP: node.at(GROUP).text("text that names the row's group")}
    return replace(found, **group)  # type: ignore[type-var]  # records are dataclasses


def _recognise(node: Node, forms: Sequence[Form[Row]], kind: str) -> Form[Row]:
    if not isinstance(node.value, dict):
        raise node.refuse("an object")
    for form in forms:
        if form.required <= node.value.keys():
            return form
    raise _nearest(node, forms, kind)


def _nearest(node: Node, forms: Sequence[Form[Row]], kind: str) -> RowError:
    """The most helpful error: the first missing key of the form that the row comes closest to."""
    keys = node.value.keys()
    best = min(forms, key=lambda form: (len(form.required - keys), -len(form.required & keys)))
    if best.required & keys:
        missing = min(best.required - keys)
        others = sorted(keys - best.required - best.optional)
        rename = f"; a mapping of columns may rename {' or '.join(printable(key, 20) for key in others[:4])}"
        found = f"a missing key{rename if others else ''}"
        return node.at(missing).refuse(f"the key of a row in {best.name}'s form", found)
    common = [form for form in forms if "(" not in form.name and not form.name.endswith("preference")]
    known = "; ".join(f"{form.name}: {', '.join(sorted(form.required))}" for form in common or forms)
    found = ", ".join(printable(key, 20) for key in sorted(keys)[:6])
    renamed = "; a mapping of columns may rename them"
    return node.refuse(f"the keys of a {kind} row ({known})", f"the keys {found}{renamed}" if found else None)
