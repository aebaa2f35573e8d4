"""How a row is rendered: the text of its tokens, which of them carry loss, and where truncation cuts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from alignkit.data.formats import PreferenceRow
from alignkit.data.tokens import render_pair


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
    """Both sequences of a pair."""

    chosen: list[Segment]
    rejected: list[Segment]
    dropped: bool = False
    """Whether the trainer leaves the row out, since its prompt alone fills max_length."""


def preview_row(row: PreferenceRow, tokenizer: Any, *, max_length: int) -> RowPreview:
    """Segments of both sequences of `row`; raises DataError as render_pair does."""
    pair = render_pair(row, tokenizer)
    start, dropped = len(pair.prompt), pair.dropped_at(max_length)

    def segments(answer: list[int]) -> list[Segment]:
        return list(_segments(pair.prompt + answer, start, max_length, tokenizer))

    return RowPreview(segments(pair.chosen), segments(pair.rejected), dropped)


def _segments(ids: list[int], start: int, max_length: int, tokenizer: Any) -> Iterator[Segment]:
    """The sequence, split where loss starts and where truncation cuts."""
    kept = min(max_length, len(ids))
    bounds = sorted({0, min(start, kept), kept, max(start, kept), len(ids)})
    whole = _decode(ids, tokenizer)
    shown = 0
    for begin, end in pairwise(bounds):
        # Decoded from the first token on, as a tokenizer may render a token otherwise at a text's start. A
        # character whose bytes lie on both sides belongs to the later segment.
        until = _shared(_decode(ids[:end], tokenizer), whole)
        cut = begin >= kept
        yield Segment(whole[shown:until], end - begin, begin >= start and not cut, cut)
        shown = until


def _shared(part: str, whole: str) -> int:
    """How many characters both begin with."""
    differing = (index for index, (one, other) in enumerate(zip(part, whole, strict=False)) if one != other)
    return next(differing, min(len(part), len(whole)))


def _decode(ids: list[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
