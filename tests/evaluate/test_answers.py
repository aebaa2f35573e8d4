"""Measures of answers: their values on answers anyone can count, and when they condemn a model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.evaluate import AnswerQuality, Limits, distinct, measure, reasons, repetition
from alignkit.sections import CollapseGuardSection

SOUND = AnswerQuality(
    reference_logp=-1.5, kl=0.2, sequence_kl=4.0, repetition=0.1, distinct_2=0.9, good_logp=-1.2
)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0.0), ([1, 2, 3], 0.0), ([1, 2, 3, 4], 0.0), ([7] * 8, 4 / 5), ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5)],
)
def test_repetition_counts_four_grams_that_came_before(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


def test_distinct_counts_over_all_answers() -> None:
    assert distinct([[1, 2, 3], [1, 2]]) == pytest.approx(2 / 3)
    assert distinct([[1], []]) == 1.0


def test_means_are_over_tokens_and_kl_is_the_mean_log_ratio() -> None:
    policy = [torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-3.0])]
    reference = [torch.tensor([-2.0, -2.0, -2.0]), torch.tensor([-4.0])]
    quality = measure([[1, 2, 3], [4]], policy, reference, None)
    assert quality.reference_logp == pytest.approx(-2.5)
    assert quality.kl == pytest.approx(1.0)
    assert quality.sequence_kl == pytest.approx(2.0)
    assert quality.good_logp is None
    assert "answers/good_logp" not in quality.metrics()


def test_without_a_reference_there_is_neither_log_prob_nor_kl() -> None:
    quality = measure([[1, 2]], [torch.tensor([-1.0, -2.0])], None, None)
    assert (quality.reference_logp, quality.kl) == (None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reference_logp": -4.2}, "under the reference fell from -1.50 to -4.20"),
        ({"repetition": 0.7}, "repeated share of its answers rose from 0.10 to 0.70"),
        ({"good_logp": -3.5}, "good answers fell from -1.20 to -3.50"),
        ({"good_logp": math.nan}, "good answers fell from -1.20 to nan"),
    ],
)
def test_each_measure_condemns_by_itself(change: dict[str, float], words: str) -> None:
    (reason,) = reasons(replace(SOUND, **change), SOUND, Limits())
    assert words in reason


@given(st.floats(0, 2.0), st.floats(0, 0.4), st.floats(0, 0.9))
def test_a_model_inside_the_limits_is_sound(logp: float, repeated: float, good: float) -> None:
    now = replace(
        SOUND, reference_logp=-1.5 - logp, repetition=min(1.0, 0.1 + repeated), good_logp=-1.2 - good
    )
    assert reasons(now, SOUND, Limits()) == []


def test_what_was_not_measured_condemns_nobody() -> None:
    nothing = replace(SOUND, reference_logp=None, good_logp=None)
    assert reasons(nothing, SOUND, Limits()) == []


def test_a_recipe_has_the_same_limits_by_default() -> None:
    given = CollapseGuardSection()
    assert Limits() == Limits(given.reference_logp_drop, given.repetition_rise, given.good_logp_drop)
