"""How a row is rendered: the text of its tokens, which of them carry loss, and where truncation cuts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from alignkit.data.schemas import Row, RowSchema
from alignkit.data.tokens import TokenSequence


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens treated alike."""

    text: str
    tokens: int
    carries_loss: bool
    cut: bool
    """Whether it lies beyond max_length."""


@dataclass(frozen=True, slots=True)
class RowPreview:
    """The sequences that a row is trained on, by name."""

    sequences: dict[str, list[Segment]]
    dropped: bool = False
    """Whether the trainer leaves the row out, since nothing that carries loss is within max_length."""


def preview_row(row: Row, tokenizer: Any, schema: RowSchema[Row], *, max_length: int) -> RowPreview:
    """Segments of every sequence of `row`; raises DataError as the schema's render does."""
    sequences = schema.render(row, tokenizer)
    return RowPreview(
        {sequence.name: list(_segments(sequence, max_length, tokenizer)) for sequence in sequences},
        dropped=all(sequence.dropped_at(max_length) for sequence in sequences),
    )


def _segments(sequence: TokenSequence, max_length: int, tokenizer: Any) -> Iterator[Segment]:
    """The sequence, split where loss starts and ends and where truncation cuts."""
    ids = sequence.ids
    kept = min(max_length, len(ids))
    edges = {edge for run in sequence.learned for edge in run if edge < kept}
    bounds = sorted({0, kept, len(ids), *edges})
    whole = _decode(ids, tokenizer)
    shown = 0
    for begin, end in pairwise(bounds):
        # Decoded from the first token on, as a tokenizer may render a token otherwise at a text's start. A
        # character whose bytes lie on both sides belongs to the later segment.
        until = _shared(_decode(ids[:end], tokenizer), whole)
        cut = begin >= kept
        learned = any(start <= begin < stop for start, stop in sequence.learned)
        yield Segment(whole[shown:until], end - begin, learned and not cut, cut)
        shown = until


def _shared(part: str, whole: str) -> int:
    """How many characters both begin with."""
    differing = (index for index, (one, other) in enumerate(zip(part, whole, strict=False)) if one != other)
    return next(differing, min(len(part), len(whole)))


def _decode(ids: list[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
