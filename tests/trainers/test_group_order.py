"""The order of rows with balanced groups: as many of each in a step, and the same again for a resume."""

from collections import Counter
from typing import Any

import pytest
from datasets import Dataset

from alignkit.errors import DataError
from alignkit.trainers.group_order import BalancedSampler, balanced
from alignkit.trainers.length_order import GroupsByLength, LengthOrderedSampler

GROUPS = ["a"] * 30 + ["b"] * 4 + ["c"] * 5
"""Groups of 39 rows, which is a multiple of their number."""


def test_every_round_has_one_row_of_each_group() -> None:
    found = [GROUPS[index] for index in BalancedSampler(GROUPS, seed=1)]
    assert len(found) == len(GROUPS)
    assert all(sorted(found[at : at + 3]) == ["a", "b", "c"] for at in range(0, 39, 3))


def test_rows_of_a_group_come_equally_often() -> None:
    times = Counter(BalancedSampler(GROUPS, seed=1))
    assert {times[index] for index in range(30, 34)} <= {3, 4}  # 13 draws of 4 rows
    assert {times[index] for index in range(34, 39)} <= {2, 3}
    assert max(times[index] for index in range(30)) == 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, again = BalancedSampler(GROUPS, seed=1), BalancedSampler(GROUPS, seed=1)
    orders = [list(first), list(first)]
    again.set_epoch(1)
    assert orders[1] == list(again) != orders[0]
    assert list(BalancedSampler(GROUPS, seed=2)) != orders[0]


def test_a_row_without_a_group_is_refused() -> None:
    with pytest.raises(DataError, match=r"balance_groups needs a group in every row, found 1 of 3 rows"):
        balanced(Dataset.from_dict({"group": ["a", None, "b"]}), seed=0)
    with pytest.raises(DataError, match=r"found 2 of 2 rows"):
        balanced(Dataset.from_dict({"x": [1, 2]}), seed=0)


class _Args:
    seed, data_seed, gradient_accumulation_steps, train_batch_size = 1, None, 2, 3
    train_sampling_strategy = "random"


class _Plain:
    """What a trainer is to the mixin."""

    args, micro_batch_matters = _Args(), False
    accelerator: Any = type("Accelerator", (), {"num_processes": 1})()
    method: Any = type("Method", (), {"micro_batch_matters": False})()
    train_dataset = Dataset.from_dict({"group": GROUPS, "length": [1 + at % 7 for at in range(39)]})

    def _get_train_sampler(self, _dataset: Any = None) -> Any:
        return "own"


class _Trainer(GroupsByLength, _Plain):
    """The mixin alone."""


def test_a_balanced_step_is_sorted_by_length_like_any_other() -> None:
    made = _Trainer()
    assert set(made._get_train_sampler()) == set(range(39))
    made.balance_groups = True
    found = made._get_train_sampler()
    assert isinstance(found, LengthOrderedSampler)
    assert Counter(GROUPS[index] for index in list(found)[:6]) == {"a": 2, "b": 2, "c": 2}
    made.micro_batch_matters = True
    assert isinstance(made._get_train_sampler(), BalancedSampler)
