"""The rows whose labels are not ignored."""

import pytest
import torch

from alignkit.kernels import rows
from alignkit.kernels.upstream import assert_on_device

LABELS = torch.tensor([3, -100, 0, -100])


def test_taken_rows_come_back_to_their_places() -> None:
    found = rows.kept(LABELS, 4, -100, "labels")
    assert found.take(torch.arange(4.0)).tolist() == [0.0, 2.0]
    assert found.spread(torch.tensor([5.0, 6.0])).tolist() == [5.0, 0.0, 6.0, 0.0]
    assert found.spread(torch.tensor([True, True])).tolist() == [True, False, True, False]


def test_nothing_is_copied_where_no_label_is_ignored() -> None:
    found, x = rows.kept(LABELS[[0, 2]], 4, -100, "labels"), torch.ones(2)
    assert found.take(x) is x
    assert found.spread(x) is x


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_outside_the_vocabulary_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"expected labels below 4, found {label}"):
        rows.kept(torch.tensor([0, -100, label]), 4, -100, "expected labels below 4")


def test_a_device_refuses_with_the_same_words() -> None:
    assert_on_device(torch.tensor(True), "labels")
    with pytest.raises(RuntimeError, match="labels must be below 4"):
        assert_on_device(torch.tensor(False), "labels must be below 4")
