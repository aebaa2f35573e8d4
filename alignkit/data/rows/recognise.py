"""Recognition of rows: a form by its keys, and a kind of row with the forms it may be written in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from alignkit.data.messages import Message
from alignkit.data.nodes import Node, RowError, printable
from alignkit.data.tokens import TokenSequence


class Record(Protocol):
    """A parsed row of any kind."""

    @property
    def prompt(self) -> list[Message]:
        """The messages before the first one that carries loss."""

    @property
    def loss_turns(self) -> list[Message]:
        """The messages that carry loss."""

    @property
    def has_no_signal(self) -> bool:
        """Whether training on the row changes nothing, as its messages show."""

    def render(self, tokenizer: Any) -> list[TokenSequence]:
        """The sequences it is trained on, by the model's chat template; raises DataError."""


Row = TypeVar("Row", bound=Record)


@dataclass(frozen=True, slots=True)
class Form(Generic[Row]):
    """A recognisable form of row: the keys it must have, those it may have, and its parser."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    parse: Callable[[Node], Row]


@dataclass(frozen=True, slots=True)
class RowKind(Generic[Row]):
    """A kind of row: its record, the forms it may be written in, and the dataset columns it becomes."""

    name: str
    record: type[Row]
    forms: tuple[Form[Row], ...]
    """In the order they are tried: a form whose keys contain another's comes first."""
    no_signal_words: str
    """Completes "12 of 300 rows have …"."""
    has_no_signal: Callable[[Sequence[TokenSequence]], bool]
    """Whether the sequences, cut as they are trained, change nothing."""
    columns: Callable[[Sequence[TokenSequence]], list[dict[str, Any]]]
    """The trainer's dataset rows for one row's sequences, each of which has a token that carries loss."""

    together: bool = False
    """Whether a row's sequences are trained together or not at all, however long each is."""
    needed: tuple[str, ...] = ()
    """Fields of the record that at least one row of a file must have, each."""

    def trained(self, sequences: Sequence[TokenSequence], max_length: int | None) -> list[TokenSequence]:
        """The sequences of a row that are trained, cut to `max_length`; none where nothing with loss is within it."""
        kept = [one for one in sequences if not one.dropped_at(max_length)]
        return [one.cut_to(max_length) for one in (sequences if kept and self.together else kept)]

    def parse(self, value: object, unused: set[str] | None = None) -> Row:
        """The row of a JSON value; raises RowError. Adds the names of keys that play no part to `unused`."""
        return parse_row(value, unused, self.forms, self.name)


def parse_row(row: object, unused: set[str] | None, forms: Sequence[Form[Row]], kind: str) -> Row:
    """A row in the first of `forms` whose keys it has; raises RowError. `kind` completes "a … row".

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
    common = [form for form in forms if "(" not in form.name and not form.name.endswith("preference")]
    known = "; ".join(f"{form.name}: {', '.join(sorted(form.required))}" for form in common or forms)
    found = ", ".join(printable(key, 20) for key in sorted(keys)[:6])
    return node.refuse(f"the keys of a {kind} row ({known})", f"the keys {found}" if found else None)
