"""OPIS: its identities, and its definition in plain loops."""

import numpy as np
import pytest
import torch

from alignkit.evaluate.opis import opis

GENERATOR = torch.Generator().manual_seed(0)
CHOSEN = torch.randn(60, generator=GENERATOR) + 1
REJECTED = torch.randn(60, generator=GENERATOR)
GROUPS = ["a"] * 25 + ["b"] * 35


def test_it_is_the_variance_of_the_groups_utilities_over_thresholds() -> None:
    found = opis(CHOSEN, REJECTED, GROUPS)
    low, high = np.quantile(REJECTED.double().numpy(), [0.9, 0.99])
    total = 0.0
    for threshold in np.linspace(low, high, 101):
        utilities = []
        for name in ("a", "b"):
            pairs = [at for at, group in enumerate(GROUPS) if group == name]
            hits = sum(float(CHOSEN[at]) >= threshold for at in pairs) / len(pairs)
            passes = sum(float(REJECTED[at]) < threshold for at in pairs) / len(pairs)
            utilities.append(2 * hits * passes / (hits + passes) if hits + passes else 0.0)
        mean = sum(utilities) / 2
        total += sum((one - mean) ** 2 for one in utilities) / 2
    assert found.value == pytest.approx(total / 101, abs=1e-3)
    assert found.value > 0


def test_one_group_and_equal_groups_give_zero() -> None:
    assert opis(CHOSEN, REJECTED, ["a"] * 60).value == 0.0
    twice = opis(CHOSEN.repeat(2), REJECTED.repeat(2), ["a"] * 60 + ["b"] * 60)
    assert twice.value == pytest.approx(0.0, abs=1e-12)


def test_an_affine_change_of_all_rewards_leaves_it() -> None:
    changed = opis(4 * CHOSEN - 2, 4 * REJECTED - 2, GROUPS)
    assert changed.value == pytest.approx(opis(CHOSEN, REJECTED, GROUPS).value, abs=1e-12)


def test_no_pairs_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="found 0, 0 and 0"):
        opis(torch.empty(0), torch.empty(0), [])
    with pytest.raises(ValueError, match="found 60, 60 and 2"):
        opis(CHOSEN, REJECTED, ["a", "b"])
