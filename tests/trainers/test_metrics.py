"""Metrics over several processes, and their way through a checkpoint."""

from types import SimpleNamespace

import pytest
import torch

from alignkit.trainers.metrics import ItemMetrics, real_rows


@pytest.mark.parametrize(
    ("rank", "end", "remainder", "real"),
    [(0, True, 5, 4), (1, True, 5, 1), (2, True, 5, 0), (1, True, 0, 4), (1, True, -1, 4), (1, False, 5, 4)],
)
def test_rows_that_fill_up_the_last_batch_are_not_real(
    rank: int, end: bool, remainder: int, real: int
) -> None:
    """Three processes of four rows: gathered, the last batch's first `remainder` rows are real."""
    state = SimpleNamespace(end_of_dataloader=end, remainder=remainder)
    assert real_rows(SimpleNamespace(gradient_state=state, process_index=rank), 4) == real


def test_a_restored_store_returns_what_the_first_would_have_returned() -> None:
    def add(items: ItemMetrics, values: list[float]) -> None:
        items.add("rewards/margins", torch.tensor(values))
        items.add_ratio("entropy", sum(values), 3)
        items.add_calibration("student/ece", torch.tensor([[2.0, 1.5, 1.0]]))

    first, second = ItemMetrics(), ItemMetrics()
    add(first, [0.5, -1.0])
    second.restore(first.state())
    for items in (first, second):
        add(items, [2.0])
    found = second.take()
    assert found == first.take()
    assert found["rewards/margins"] == pytest.approx(0.5)
    assert found["entropy"] == pytest.approx(1.5 / 6)
