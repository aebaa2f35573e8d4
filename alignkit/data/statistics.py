"""What a file holds, by the model's tokenizer: lengths, truncation, repeats, overlap with the held-out file."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from alignkit.data.formats import PreferenceRow
from alignkit.data.tokens import PairTokens, render_pair
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
    chosen: Lengths
    rejected: Lengths
    total: Lengths
    """Of prompt and the longer answer."""
    max_length: int
    truncated: int
    """Rows of which at least one answer is cut, dropped ones included."""
    prompt_fills: int
    """Of these, rows whose prompt alone reaches max_length; the trainer drops them."""
    identical: int
    """Rows with chosen equal to rejected."""
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
    def prompt_fills_share(self) -> float:
        """The share of rows that are dropped, from 0 to 1."""
        return self.prompt_fills / self.rows


def describe_rows(
    rows: Sequence[PreferenceRow], tokenizer: Any, *, max_length: int, held_out: Sequence[PreferenceRow] = ()
) -> DatasetStatistics:
    """Statistics of `rows`; raises DataError where there are none, or the chat template refuses one."""
    if not rows:
        raise DataError("statistics need at least one row")
    sizes = [_Size.of(pair, max_length) for pair in _rendered(rows, tokenizer)]
    keys, prompts = [_row_key(row) for row in rows], [_key(row.prompt) for row in rows]
    other_keys, other_prompts = set(map(_row_key, held_out)), {_key(row.prompt) for row in held_out}
    return DatasetStatistics(
        rows=len(rows),
        prompt=percentiles([size.prompt for size in sizes]),
        chosen=percentiles([size.chosen for size in sizes]),
        rejected=percentiles([size.rejected for size in sizes]),
        total=percentiles([size.total for size in sizes]),
        max_length=max_length,
        truncated=sum(size.total > max_length for size in sizes),
        prompt_fills=sum(size.dropped for size in sizes),
        identical=sum(row.chosen == row.rejected for row in rows),
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
    """What is kept of a rendered pair, so that a large file's token ids are never all in memory."""

    prompt: int
    chosen: int
    rejected: int
    total: int
    dropped: bool

    @classmethod
    def of(cls, pair: PairTokens, max_length: int) -> "_Size":
        return cls(
            len(pair.prompt),
            len(pair.chosen),
            len(pair.rejected),
            pair.longest,
            pair.dropped_at(max_length),
        )


def _rendered(rows: Sequence[PreferenceRow], tokenizer: Any) -> Iterator[PairTokens]:
    for number, row in enumerate(rows, start=1):
        try:
            yield render_pair(row, tokenizer)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from error


def _row_key(row: PreferenceRow) -> bytes:
    return _key([row.prompt, row.chosen, row.rejected, row.tools])


def _key(value: Any) -> bytes:
    """A digest of a JSON value, equal for equal values."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()
