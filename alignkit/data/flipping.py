"""A probe of memorisation: a known share of the training pairs with their answers swapped."""

import random
from typing import Any

FLIPPED = "flipped"
"""Column of the probe: whether the row's answers are swapped."""


def flip(dataset: Any, share: float, seed: int) -> Any:
    """Return a tokenised dataset of pairs with the answers of `share` of the rows, drawn by `seed`, swapped."""
    count = len(dataset)
    chosen = set(random.Random(seed).sample(range(count), round(share * count)))
    flipped = [at in chosen for at in range(count)]
    first, second = (dataset[name][:] for name in ("chosen_ids", "rejected_ids"))
    swapped = [(b, a) if turned else (a, b) for a, b, turned in zip(first, second, flipped, strict=True)]
    columns = {
        "chosen_ids": [a for a, _ in swapped],
        "rejected_ids": [b for _, b in swapped],
        FLIPPED: flipped,
    }
    for name, values in columns.items():
        dataset = dataset.remove_columns([name]) if name in dataset.column_names else dataset
        dataset = dataset.add_column(name, values)
    return dataset
