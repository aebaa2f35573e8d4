"""Mismatched answers: each row gets the answer of another prompt, to estimate KTO's baseline.

They are a fixed permutation of the dataset's answers. So they depend on no batch, and over the whole dataset they are
the answers that are trained.
"""

import random
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

MISMATCHED = "KL_completion_ids"
"""Column of mismatched answers, under the name that TRL's collator expects."""


def partners(prompts: Iterable[Sequence[int]], seed: int) -> list[int]:
    """Return for each row the row whose answer it gets: a permutation that avoids rows of the same prompt.

    Rows are grouped by prompt, the groups are shuffled with `seed`, and all rows are rotated by the size of the
    largest group. A row gets an answer of its own prompt only if that prompt has more than half of all rows, and then
    for as few rows as possible.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[blake2b(array("q", prompt).tobytes(), digest_size=16).digest()].append(index)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    order = [index for group in shuffled for index in group]
    shift = max(map(len, shuffled), default=0)
    found = [0] * len(order)
    for place, index in enumerate(order):
        found[index] = order[(place + shift) % len(order)]
    return found


def with_mismatched(dataset: Dataset, seed: int) -> Dataset:
    """Add the column MISMATCHED to a dataset of token ids. A dataset that has it is returned unchanged."""
    if MISMATCHED in dataset.column_names:
        return dataset
    chosen = partners(dataset["prompt_ids"], seed)
    answers: Any = dataset.select_columns(["completion_ids"]).with_format("arrow")[:]["completion_ids"]
    return concatenate_datasets(
        [dataset, Dataset(pa.table({MISMATCHED: answers.take(pa.array(chosen))}))], axis=1
    )
