"""What a file holds, by the model's tokenizer: lengths, truncation, repeats, overlap with the held-out file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

from alignkit.data.schemas import Row, RowSchema
from alignkit.data.tokens import TokenSequence, render_rows
from alignkit.errors import DataError


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of a token count: that share of the rows is at most so long."""

    p50: int
    p90: int
    p99: int
    maximum: int


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Counts are rows; lengths are tokens."""

    rows: int
    prompt: Lengths
    answers: dict[str, Lengths]
    """By the name of the sequence: tokens from the first that carries loss on."""
    total: Lengths
    """Of a row's longest sequence."""
    max_length: int
    truncated: int
    """Rows of which at least one sequence is cut, dropped ones included."""
    dropped: int
    """Rows of which no sequence has a token with loss within max_length; the trainer leaves them out."""
    idle: int
    """Rows that teach nothing, for the reason in `idle_words`."""
    idle_words: str
    duplicates: int
    """Rows that repeat an earlier one whole."""
    duplicate_prompts: int
    """Rows with the prompt of an earlier one, duplicates included."""
    overlap: int
    """Rows that the held-out file has too."""
    prompt_overlap: int
    """Rows whose prompt the held-out file has too, whole rows included."""

    @property
    def truncated_share(self) -> float:
        """The share of rows that are cut, from 0 to 1."""
        return self.truncated / self.rows

    @property
    def dropped_share(self) -> float:
        """The share of rows that are dropped, from 0 to 1."""
        return self.dropped / self.rows


def describe_rows(
    rows: Sequence[Row],
    tokenizer: Any,
    schema: RowSchema[Row],
    *,
    max_length: int,
    held_out: Sequence[Row] = (),
) -> DatasetStatistics:
    """Statistics of `rows`; raises DataError where there are none, or the chat template refuses one."""
    if not rows:
        raise DataError("statistics need at least one row")
    rendered = render_rows(rows, tokenizer, schema.render)
    sizes = [_Size.of(sequences, max_length) for sequences in rendered]
    keys, prompts = [_row_key(row) for row in rows], [_key(schema.prompt(row)) for row in rows]
    other_keys, other_prompts = set(map(_row_key, held_out)), {_key(schema.prompt(row)) for row in held_out}
    return DatasetStatistics(
        rows=len(rows),
        prompt=percentiles([size.prompt for size in sizes]),
        answers=_answers(sizes),
        total=percentiles([size.total for size in sizes]),
        max_length=max_length,
        truncated=sum(size.total > max_length for size in sizes),
        dropped=sum(size.dropped for size in sizes),
        idle=sum(map(schema.idle, rows)),
        idle_words=schema.idle_words,
        duplicates=len(keys) - len(set(keys)),
        duplicate_prompts=len(prompts) - len(set(prompts)),
        overlap=sum(key in other_keys for key in keys),
        prompt_overlap=sum(prompt in other_prompts for prompt in prompts),
    )


def percentiles(counts: Sequence[int]) -> Lengths:
    """Nearest-rank percentiles of counts, at least one: each is a count that occurs."""
    ordered = sorted(counts)
    p50, p90, p99 = (ordered[math.ceil(len(ordered) * share / 100) - 1] for share in (50, 90, 99))
    return Lengths(p50, p90, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class _Size:
    """What is kept of a rendered row, so that a large file's token ids are never all in memory."""

    prompt: int
    answers: dict[str, int]
    total: int
    dropped: bool

    @classmethod
    def of(cls, sequences: list[TokenSequence], max_length: int) -> "_Size":
        return cls(
            min(sequence.prompt for sequence in sequences),
            {sequence.name: len(sequence.ids) - sequence.prompt for sequence in sequences},
            max(len(sequence.ids) for sequence in sequences),
            all(sequence.dropped_at(max_length) for sequence in sequences),
        )


def _answers(sizes: list[_Size]) -> dict[str, Lengths]:
    """By name, in the order in which the names come up."""
    names = dict.fromkeys(name for size in sizes for name in size.answers)
    return {
        name: percentiles([size.answers[name] for size in sizes if name in size.answers]) for name in names
    }


def _row_key(row: Any) -> bytes:
    return _key([getattr(row, field.name) for field in fields(row)])


def _key(value: Any) -> bytes:
    """A digest of a JSON value, equal for equal values."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
