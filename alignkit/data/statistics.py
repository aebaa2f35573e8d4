"""What a file holds, by the model's tokenizer: lengths, truncation, repeats, overlap with the held-out file."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.formats import Message, PreferenceRow
from alignkit.data.tokens import render_pair


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of a token count."""

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
    """Rows of which at least one answer is cut."""
    prompt_fills: int
    """Rows whose prompt alone reaches max_length; the trainer drops them."""
    identical: int
    duplicates: int
    duplicate_prompts: int
    overlap: int
    """Rows that the held-out file has too."""
    prompt_overlap: int
    """Rows whose prompt the held-out file has too."""


def describe_rows(
    rows: Sequence[PreferenceRow], tokenizer: Any, *, max_length: int, held_out: Sequence[PreferenceRow] = ()
) -> DatasetStatistics:
    """Statistics of `rows`; needs at least one."""
    tokens = [render_pair(row, tokenizer) for row in rows]
    keys, prompts = [_key(row) for row in rows], [_text(row.prompt) for row in rows]
    other_keys, other_prompts = {_key(row) for row in held_out}, {_text(row.prompt) for row in held_out}
    return DatasetStatistics(
        rows=len(rows),
        prompt=_lengths(len(pair.prompt) for pair in tokens),
        chosen=_lengths(len(pair.chosen) for pair in tokens),
        rejected=_lengths(len(pair.rejected) for pair in tokens),
        total=_lengths(pair.longest for pair in tokens),
        max_length=max_length,
        truncated=sum(pair.longest > max_length for pair in tokens),
        prompt_fills=sum(len(pair.prompt) >= max_length for pair in tokens),
        identical=sum(row.chosen == row.rejected for row in rows),
        duplicates=len(keys) - len(set(keys)),
        duplicate_prompts=len(prompts) - len(set(prompts)),
        overlap=sum(key in other_keys for key in keys),
        prompt_overlap=sum(prompt in other_prompts for prompt in prompts),
    )


def _lengths(counts: Iterable[int]) -> Lengths:
    ordered = sorted(counts)
    if len(ordered) == 1:
        return Lengths(*([ordered[0]] * 4))
    cuts = statistics.quantiles(ordered, n=100, method="inclusive")
    return Lengths(round(cuts[49]), round(cuts[89]), round(cuts[98]), ordered[-1])


def _key(row: PreferenceRow) -> str:
    return _text([*row.prompt, *row.chosen, *row.rejected])


def _text(messages: list[Message]) -> str:
    return json.dumps(messages, sort_keys=True, ensure_ascii=False)
