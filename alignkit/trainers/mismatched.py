"""Mismatched answers: for every row the answer of another prompt, from which KTO's baseline is estimated.

They are a fixed permutation of the data set, so that they depend on no batch, and over the data set they are the very
answers that are trained.
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
"""The column of mismatched answers, under TRL's name, which its collator turns into sequences."""


def partners(prompts: Iterable[Sequence[int]], seed: int) -> list[int]:
    """For each row the row whose answer it gets: a permutation without a row of the same prompt, where there is one.

    Rows of a prompt are put side by side, the prompts shuffled by `seed`, and all rotated by as many rows as the most
    frequent prompt has. A row keeps its own prompt's answer only if that prompt has more than half of all rows, and
    then as few do as possible.
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
    """The dataset of token ids with the column MISMATCHED; one that has it is returned as it is."""
    if MISMATCHED in dataset.column_names:
        return dataset
    chosen = partners(dataset["prompt_ids"], seed)
    answers: Any = dataset.select_columns(["completion_ids"]).with_format("arrow")[:]["completion_ids"]
    return concatenate_datasets(
        [dataset, Dataset(pa.table({MISMATCHED: answers.take(pa.array(chosen))}))], axis=1
    )
