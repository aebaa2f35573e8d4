"""Win rates, and their interval against scipy's."""

import math

import pytest
from scipy.stats import binomtest

from alignkit.evaluate.win_rate import of_scores, wilson, win_rate


@pytest.mark.parametrize(("wins", "count"), [(0, 1), (3, 7), (10, 10), (40, 100)])
def test_the_interval_is_wilsons(wins: int, count: int) -> None:
    expected = binomtest(wins, count).proportion_ci(method="wilson")
    assert wilson(wins / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_tie_counts_half_and_what_is_invalid_does_not_count() -> None:
    found = win_rate(["win", "win", "tie", "loss", "invalid", "invalid"])
    assert (found.wins, found.ties, found.losses, found.invalid) == (2, 1, 1, 2)
    assert found.rate == 2.5 / 4
    assert found.low is not None
    assert found.high is not None
    assert found.low < 2.5 / 4 < found.high


def test_without_a_valid_outcome_there_is_no_rate() -> None:
    found = win_rate(["invalid"])
    assert (found.rate, found.low, found.high, found.invalid) == (None, None, None, 1)


def test_the_higher_score_wins_and_nan_is_invalid() -> None:
    assert of_scores([1.0, 2.0, 0.0, math.nan], [2.0, 1.0, 0.0, 1.0]) == ["loss", "win", "tie", "invalid"]
