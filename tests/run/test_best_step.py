"""The best step and early stopping, from the Trainer's log."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.held_out_metrics import METRICS
from alignkit.run.best_step import best_step, evaluated, stops, without_gain
from alignkit.sections import TrainingSection

LOSS, ACCURACY = "valid_loss", "valid_rewards_accuracies"


def log_of(*losses: float, sound: tuple[bool, ...] = ()) -> list[dict[str, Any]]:
    """A log with an evaluation of each step from 0, and the guard's verdicts."""
    found: list[dict[str, Any]] = []
    for step, loss in enumerate(losses):
        found += [{"step": step, "loss": 9.0}, {"step": step, "eval_loss": loss, "eval_runtime": 1.0}]
        if step < len(sound):
            found.append({"step": step, "eval_answers/sound": float(sound[step])})
    return found


def test_the_untrained_model_is_no_step_to_choose() -> None:
    assert evaluated(log_of(0.1, 0.7, 0.5), LOSS) == {1: 0.7, 2: 0.5}


def test_a_collapsed_step_is_never_the_best() -> None:
    values = evaluated(log_of(0.9, 0.7, 0.1, sound=(True, True, False)), LOSS)
    assert math.isnan(values[2])
    assert best_step(values, LOSS).step == 1  # type: ignore[union-attr]


def test_where_all_steps_collapsed_the_loss_decides() -> None:
    values = evaluated(log_of(0.9, 0.7, 0.1, sound=(True, False, False)), LOSS)
    assert best_step(values, LOSS).step == 2  # type: ignore[union-attr]


def test_an_evaluation_without_the_metric_is_an_error() -> None:
    with pytest.raises(KeyError):
        evaluated(log_of(0.9, 0.7), ACCURACY)


def test_the_earliest_of_equal_steps_is_the_best_and_no_number_never_is() -> None:
    assert best_step({1: math.nan, 2: 0.5, 3: 0.5}, LOSS).step == 2  # type: ignore[union-attr]
    assert best_step({1: 0.5, 2: 0.9, 3: 0.9}, ACCURACY).step == 2  # type: ignore[union-attr]
    assert best_step({1: math.nan, 2: math.inf}, LOSS) is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.sampled_from(sorted(METRICS)))
def test_the_best_is_the_extreme_that_the_metric_wants(values: list[float], metric: str) -> None:
    extreme = max if METRICS[metric].higher_is_better else min
    best = best_step(dict(enumerate(values, 1)), metric)
    assert best is not None
    assert best.value == extreme(values)


@pytest.mark.parametrize(
    ("values", "min_gain", "expected"),
    [
        ([1.0, 0.9, 0.8], 0.0, 0),
        ([1.0, 0.8, 0.9, 0.8], 0.0, 2),
        ([1.0, 0.95, 0.9, 0.85], 0.1, 0),  # small gains add up, so a slow fall does not stop a run
        ([1.0, 0.95, 0.93], 0.1, 2),
        ([math.nan, 1.0, math.nan], 0.0, 1),
        ([math.nan, math.nan], 0.0, 2),
    ],
)
def test_evaluations_without_a_gain_are_counted(values: list[float], min_gain: float, expected: int) -> None:
    assert without_gain(dict(enumerate(values, 1)), LOSS, min_gain) == expected


def test_patience_decides_and_without_the_option_nothing_stops() -> None:
    values = {1: 0.5, 2: 0.6, 3: 0.7}
    patient = TrainingSection.model_validate({"eval_steps": 1, "early_stopping": {"patience": 3}})
    hasty = TrainingSection.model_validate({"eval_steps": 1, "early_stopping": {"patience": 2}})
    assert not stops(values, TrainingSection())
    assert not stops(values, patient)
    assert stops(values, hasty)
