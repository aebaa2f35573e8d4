"""Statistics of a file and previews of its rows, both based on the trained token sequences."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic

from alignkit.data.rows import Record, Row, RowKind
from alignkit.data.tokens import TokenSequence, digests, render_rows
from alignkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of token counts: p90 is a count that 90 % of the rows do not exceed."""

    p50: int
    p90: int
    p99: int
    maximum: int


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Statistics of a data file; counts are rows, lengths are tokens."""

    rows: int
    prompt: Lengths
    answers: dict[str, Lengths]
    """Sequence name -> lengths from the first token that carries loss."""
    total: Lengths
    """Lengths of each row's longest sequence."""
    max_length: int
    truncated: int
    """Rows with at least one truncated sequence, including dropped rows."""
    dropped: int
    """Rows without a token that carries loss within max_length; the trainer drops them."""
    no_signal: int
    """Rows that give no gradient, for the reason in `no_signal_words`."""
    no_signal_words: str
    duplicates: int
    """Rows equal to an earlier row."""
    duplicate_prompts: int
    """Rows with the same prompt as an earlier row, including duplicates."""
    overlap: int
    """Rows that are also in the validation file."""
    prompt_overlap: int
    """Rows whose prompt is also in the validation file, including rows in `overlap`."""

    @property
    def truncated_share(self) -> float:
        """The share of truncated rows, from 0 to 1."""
        return self.truncated / self.rows

    @property
    def dropped_share(self) -> float:
        """The share of dropped rows, from 0 to 1."""
        return self.dropped / self.rows


class Statistics(Generic[Row]):
    """Collects statistics row by row; rows are equal if their trained token ids are."""

    def __init__(self, kind: RowKind[Row], max_length: int) -> None:
        self._kind = kind
        self._max_length = max_length
        self._sizes: list[_Size] = []
        self._no_signal = 0
        self.keys: list[bytes] = []
        """A digest of each row's trained ids."""
        self.prompts: list[bytes] = []
        """A digest of each row's prompt ids."""

    def add(self, row: Row, sequences: Sequence[TokenSequence]) -> None:
        """Add a row with its sequences as returned by its `render`."""
        trained = self._kind.trained(sequences, self._max_length)
        self._sizes.append(_Size.of(sequences, self._max_length))
        self._no_signal += row.has_no_signal or (bool(trained) and self._kind.has_no_signal(trained))
        row_digest, prompt_digest = digests(trained or sequences)
        self.keys.append(row_digest)
        self.prompts.append(prompt_digest)

    def result(self, held_out: "Statistics[Row] | None" = None) -> DatasetStatistics:
        """The statistics, including the overlap with `held_out`. Raises DataError if no row was added."""
        if not self._sizes:
            raise DataError("statistics need at least one row")
        sizes, keys, prompts = self._sizes, self.keys, self.prompts
        other_keys = set(held_out.keys) if held_out else set()
        other_prompts = set(held_out.prompts) if held_out else set()
        return DatasetStatistics(
            rows=len(sizes),
            prompt=percentiles([size.prompt for size in sizes]),
            answers=_answers(sizes),
            total=percentiles([size.total for size in sizes]),
            max_length=self._max_length,
            truncated=sum(size.total > self._max_length for size in sizes),
            dropped=sum(size.dropped for size in sizes),
            no_signal=self._no_signal,
            no_signal_words=self._kind.no_signal_words,
            duplicates=len(keys) - len(set(keys)),
            duplicate_prompts=len(prompts) - len(set(prompts)),
            overlap=sum(key in other_keys for key in keys),
            prompt_overlap=sum(prompt in other_prompts for prompt in prompts),
        )


def describe_rows(
    rows: Sequence[Row],
    tokenizer: Any,
    kind: RowKind[Row],
    *,
    max_length: int,
    held_out: Sequence[Row] = (),
) -> DatasetStatistics:
    """Statistics of `rows`. Raises DataError if there are none, or the chat template refuses one."""
    both = []
    for part in (rows, held_out):
        counted = Statistics(kind, max_length)
        rendered = render_rows(part, tokenizer, lambda row, by: row.render(by))
        for row, sequences in zip(part, rendered, strict=True):
            counted.add(row, sequences)
        both.append(counted)
    return both[0].result(both[1])


def percentiles(counts: Sequence[int]) -> Lengths:
    """Nearest-rank percentiles of a non-empty list of counts; each is one of the counts."""
    ordered = sorted(counts)
    p50, p90, p99 = (ordered[math.ceil(len(ordered) * share / 100) - 1] for share in (50, 90, 99))
    return Lengths(p50, p90, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class _Size:
    """The lengths of a rendered row, kept instead of its token ids to save memory."""

    prompt: int
    answers: dict[str, int]
    total: int
    dropped: bool

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], max_length: int) -> "_Size":
        return cls(
            min(sequence.prompt_length for sequence in sequences),
            {sequence.name: len(sequence.ids) - sequence.prompt_length for sequence in sequences},
            max(len(sequence.ids) for sequence in sequences),
            all(sequence.dropped_at(max_length) for sequence in sequences),
        )


def _answers(sizes: list[_Size]) -> dict[str, Lengths]:
    """Lengths per sequence name, in order of first appearance."""
    names = dict.fromkeys(name for size in sizes for name in size.answers)
    return {
        name: percentiles([size.answers[name] for size in sizes if name in size.answers]) for name in names
    }


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of consecutive tokens that are treated alike."""

    text: str
    tokens: int
    carries_loss: bool
    cut: bool
    """Whether the tokens exceed max_length."""


@dataclass(frozen=True, slots=True)
class RowPreview:
    """The sequences that a row is trained on, by name."""

    sequences: dict[str, list[Segment]]
    dropped: bool = False
    """Whether the trainer drops the row, because no token that carries loss is within max_length."""
    notes: tuple[str, ...] = ()
    """Differences from the row's content, or from how the model is served."""


def preview_row(row: Record, tokenizer: Any, *, max_length: int) -> RowPreview:
    """Segments of every sequence of `row`. Raises DataError like the row's `render`."""
    return preview_of(row.render(tokenizer), tokenizer, max_length=max_length)


def preview_of(sequences: Sequence[TokenSequence], tokenizer: Any, *, max_length: int) -> RowPreview:
    """Segments of a row's sequences."""
    return RowPreview(
        {sequence.name: list(_segments(sequence, max_length, tokenizer)) for sequence in sequences},
        dropped=all(sequence.dropped_at(max_length) for sequence in sequences),
        notes=tuple(dict.fromkeys(note for sequence in sequences for note in sequence.notes)),
    )


def _segments(sequence: TokenSequence, max_length: int, tokenizer: Any) -> Iterator[Segment]:
    """The sequence, split at the boundaries of loss spans and at the truncation."""
    ids = sequence.ids
    kept = min(max_length, len(ids))
    edges = {edge for run in sequence.loss_spans for edge in run if edge < kept}
    bounds = sorted({0, kept, len(ids), *edges})
    whole = _decode(ids, tokenizer)
    shown = 0
    for begin, end in pairwise(bounds):
        # Decoded from the first token on, since a tokenizer may render a token differently at the start of a text. A
        # character whose bytes lie on both sides of a boundary belongs to the later segment.
        until = _shared(_decode(ids[:end], tokenizer), whole)
        cut = begin >= kept
        with_loss = any(start <= begin < stop for start, stop in sequence.loss_spans)
        yield Segment(whole[shown:until], end - begin, with_loss and not cut, cut)
        shown = until


def _shared(part: str, whole: str) -> int:
    """The length of the common prefix, in characters."""
    differing = (index for index, (one, other) in enumerate(zip(part, whole, strict=False)) if one != other)
    return next(differing, min(len(part), len(whole)))


def _decode(ids: list[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
