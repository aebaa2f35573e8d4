"""Padding rows of the last batch, and the shares of a step's mean over micro-batches and processes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignkit.trainers.metrics import gather_rows, part_of_last_round
from alignkit.trainers.whole_steps import IS_REAL, WholeRowSteps, without_padding_rows


@pytest.mark.parametrize(
    ("remainder", "parts"), [(1, [1, 0, 0]), (2, [2, 0, 0]), (3, [2, 1, 0]), (5, [2, 2, 1]), (6, [2, 2, 2])]
)
def test_the_last_rows_go_round_as_far_as_they_do(remainder: int, parts: list[int]) -> None:
    assert [part_of_last_round(remainder, rank, 2) for rank in range(3)] == parts


def test_padding_rows_carry_no_loss() -> None:
    batch = {"input_ids": torch.ones(3, 4), "labels": torch.arange(12).view(3, 4)}
    found = without_padding_rows(batch, 2, 3)
    assert found["labels"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [-100] * 4]
    assert found[IS_REAL].tolist() == [True, True, False]
    assert batch["labels"][2, 0] == 8  # the batch that was given is left alone


def test_of_a_filled_up_pair_neither_answer_counts() -> None:
    found = without_padding_rows({"input_ids": torch.ones(4, 3), "completion_mask": torch.ones(4, 3)}, 1, 2)
    assert found["completion_mask"][:, 0].tolist() == [1, 0, 1, 0]
    assert without_padding_rows({"row": torch.tensor([7, 8])}, 0, 2)[IS_REAL].tolist() == [False, False]


class Steps(WholeRowSteps):
    """The mixin on a given number of processes."""

    def __init__(self, processes: int) -> None:
        self.accelerator = SimpleNamespace(num_processes=processes)


def test_parts_sum_to_the_mean_over_the_step_s_rows() -> None:
    """Two processes with forwards of 2 rows, of which the last two have 1 and none: 5 rows that count."""
    losses = torch.arange(1.0, 9.0)
    flags = [[True, True], [True, True], [True, False], [False, False]]
    parts = [
        losses[2 * turn : 2 * turn + 2] @ Steps(2).row_weights(2, torch.tensor(flag), torch.tensor(5))
        for turn, flag in enumerate(flags)
    ]
    summed = torch.stack(parts).sum() / 2  # gradients are averaged over processes
    assert summed == pytest.approx(float(losses[:5].mean()))
    assert Steps(2).row_weights(4, None, None).tolist() == [0.25] * 4  # an evaluation's batch


def test_metrics_leave_padding_rows_out() -> None:
    def gather(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, values])

    accelerator: Any = SimpleNamespace(gather=gather, gather_for_metrics=lambda _: pytest.fail("in training"))
    found = gather_rows(accelerator, torch.tensor([[1.0], [2.0]]), torch.tensor([True, False]))
    assert found.tolist() == [[1.0], [1.0]]
