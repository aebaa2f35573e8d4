"""The time left, a checkpoint's metrics, and the lines that people read."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.run.progress import Clock, checkpoint_metrics, describe, evaluations_left


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulate(total: int, every: int, step: float, pause: float, rows: int = 12) -> list[tuple[float, float]]:
    """(told, true) seconds left at every log of a quiet run."""
    time = Time()
    clock, told = Clock(time), []
    for number in range(1, total + 1):
        clock.begin_step()
        time.now += step
        clock.end_step()

        def tell(after: int, number: int = number) -> None:
            left = evaluations_left(after, total, every)
            seconds = clock.remaining(total - number, left, 4, rows)
            assert seconds is not None
            told.append((time.now, seconds))

        tell(number - 1)
        if number % every == 0 or number == total:
            time.now += pause
            clock.evaluated()
            tell(number)
    return [(seconds, time.now - at) for at, seconds in told]


def test_nothing_is_told_before_the_first_step() -> None:
    assert Clock().remaining(10, 2, 4, 12) is None


def test_a_long_start_does_not_count_as_a_step() -> None:
    time = Time()
    clock = Clock(time)
    time.now += 103  # the guard's first answers
    clock.begin_step()
    time.now += 5
    clock.end_step()
    assert clock.remaining(41, 0, 4, 0) == 41 * 5


@pytest.mark.parametrize(("every", "pause"), [(21, 5.3), (7, 12.0), (100, 3.0)])
def test_a_quiet_run_is_told_its_time_within_a_third(every: int, pause: float) -> None:
    for told, true in simulate(42, every, 5.3, pause)[:-1]:
        assert told == pytest.approx(true, rel=1 / 3, abs=pause)


def test_once_an_evaluation_was_seen_the_time_is_exact() -> None:
    for told, true in simulate(42, 7, 5.3, 30.0)[8:]:
        assert told == pytest.approx(true)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 60))
def test_evaluations_left_are_those_that_a_run_makes(total: int, every: int, step: int) -> None:
    made = {number for number in range(1, total + 1) if number % every == 0} | {total}
    assert evaluations_left(step, total, every) == sum(number > step for number in made if step < total)


def test_a_run_without_evaluations_has_none_left() -> None:
    assert evaluations_left(3, 10, None) == 0


def state(*log_history: dict[str, Any]) -> Any:
    return SimpleNamespace(global_step=6, log_history=list(log_history))


def test_a_checkpoint_has_the_validation_metrics_of_its_own_step() -> None:
    metrics = checkpoint_metrics(
        state(
            {"step": 4, "eval_loss": 0.9},
            {"step": 6, "loss": 0.5, "learning_rate": 1e-4},
            {"step": 6, "eval_loss": 0.74, "eval_mean_token_accuracy": 0.6},
        )
    )
    assert metrics["train_loss"] == 0.5
    assert metrics["valid_loss"] == metrics["full_valid_loss"] == 0.74
    assert metrics["full_valid_mean_token_accuracy"] == 0.6


def test_a_checkpoint_between_evaluations_has_no_other_steps_validation() -> None:
    metrics = checkpoint_metrics(state({"step": 4, "eval_loss": 0.9}, {"step": 6, "loss": 0.5}))
    assert "valid_loss" not in metrics


def test_the_guards_line_says_what_it_found() -> None:
    told = {"step": 4, "total_steps": 8, "valid_answers_reference_logp": -5.02}
    limits = {"valid_answers_reference_logp_before": -3.2, "valid_answers_reference_logp_limit": -5.7}
    sound = {"valid_answers_sound": 1.0, **limits}
    assert describe(told | sound) == "Step 4/8: answers are sound (-3.2 → -5.0, limit -5.7)"
    assert "may have collapsed" in describe(told | sound | {"valid_answers_sound": 0.0})
