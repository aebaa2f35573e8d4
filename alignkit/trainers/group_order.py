"""The order of the rows with `data.balance_groups`: all groups in turn, so that a step holds as many of each."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from alignkit.data.rows.recognise import GROUP
from alignkit.errors import DataError
from alignkit.trainers.tokenised import columns_of


class BalancedSampler(Sampler[int]):
    """Indices of rows, one of each group in each round, whose order is drawn anew from seed and epoch.

    `groups[i]` names the group of row i. An epoch has as many indices as rows: the rows of a small group come several
    times, in an order that is drawn anew each time, and some of a large one not at all.
    """

    def __init__(self, groups: Sequence[Any], *, seed: int) -> None:
        names = sorted(set(groups))
        self._rows = [[at for at, group in enumerate(groups) if group == name] for name in names]
        self._size, self._seed, self.epoch = len(groups), seed, 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        waiting: list[list[int]] = [[] for _ in self._rows]
        for count in range(self._size):
            place = count % len(self._rows)
            if place == 0:
                order = torch.randperm(len(self._rows), generator=generator).tolist()
            group = order[place]
            if not waiting[group]:
                rows = self._rows[group]
                waiting[group] = [rows[at] for at in torch.randperm(len(rows), generator=generator).tolist()]
            yield waiting[group].pop()
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order together with the seed."""
        self.epoch = epoch


def balanced(dataset: Any, *, seed: int) -> BalancedSampler:
    """The sampler of a dataset with a column of group names. Raises DataError if a row has none."""
    groups = list(dataset[GROUP]) if GROUP in columns_of(dataset) else []
    lacking = len(dataset) if not groups else sum(group is None for group in groups)
    if lacking:
        raise DataError(
            f"train dataset: data.balance_groups needs a group in every row, found {lacking:,} of {len(dataset):,} "
            "rows without one"
        )
    return BalancedSampler(groups, seed=seed)
