"""How a row is rendered: the text of its tokens, which of them carry loss, and where truncation cuts."""

from dataclasses import dataclass
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


def preview_row(row: PreferenceRow, tokenizer: Any, *, max_length: int) -> RowPreview:
    """Segments of both sequences of `row`."""
    pair = render_pair(row, tokenizer)

    def segments(answer: list[int]) -> list[Segment]:
        found = []
        for ids, carries_loss, start in ((pair.prompt, False, 0), (answer, True, len(pair.prompt))):
            kept = max(0, max_length - start)
            for part, cut in ((ids[:kept], False), (ids[kept:], True)):
                if part:
                    found.append(Segment(tokenizer.decode(part), len(part), carries_loss and not cut, cut))
        return found

    return RowPreview(segments(pair.chosen), segments(pair.rejected))
