"""A sweep section: its points, its bounds, and what cannot vary."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import RecipeError
from alignkit.sweep import MOST_POINTS, Halving, sweep_of

HALVING = {"metric": "valid_loss", "goal": "min", "rungs": [2, 4]}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_points_are_all_combinations_once(counts: list[int]) -> None:
    spec = sweep_of({f"method.option{at}": list(range(count)) for at, count in enumerate(counts)})
    found = {tuple(point.values.values()) for point in spec.points()}
    assert len(spec.points()) == len(found) == math.prod(counts)
    assert len({point.name for point in spec.points()}) == len(found)


def test_a_million_points_are_refused_before_any_is_made() -> None:
    options = {f"method.option{at}": list(range(100)) for at in range(3)}
    with pytest.raises(RecipeError, match=rf"sweep: expected at most {MOST_POINTS} points, found 1,000,000"):
        sweep_of(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1], "sweep: expected options and their values, found list"),
        ({}, "sweep: expected at least one option"),
        ({"halving": HALVING}, "sweep: expected at least one option"),
        ({"method.beta": 0.1}, "sweep.method.beta: expected a list of values, found 0.1"),
        ({"method.beta": []}, "sweep.method.beta: expected a list of values"),
        ({"method.beta": [0.1, 0.1]}, "sweep.method.beta: expected each value once"),
        ({"output_dir": ["a", "b"]}, "sweep.output_dir: cannot vary: the sweep sets it"),
        (
            {"training.epochs": [1, 2], "halving": HALVING},
            "sweep.training.epochs: cannot vary: runs that are compared at a step must agree in it",
        ),
        (
            {"method.beta": [0.1], "halving": HALVING | {"rungs": [4, 2]}},
            "sweep.halving.rungs: expected ascending",
        ),
        (
            {"method.beta": [0.1], "halving": HALVING | {"metrik": "x"}},
            "sweep.halving.metrik: unknown key",
        ),
        ({"method.beta": [0.1], "halving": HALVING | {"keep": 1.0}}, "sweep.halving.keep: expected"),
    ],
)
def test_a_section_that_is_wrong_is_refused_with_its_place(given: Any, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        sweep_of(given)
    assert message in str(refused.value)


def test_epochs_may_vary_where_no_runs_are_compared() -> None:
    assert len(sweep_of({"training.epochs": [1, 2]}).points()) == 2


@pytest.mark.parametrize(("goal", "first"), [("max", "b"), ("min", "a")])
def test_the_best_value_comes_first(goal: str, first: str) -> None:
    halving = Halving.model_validate(HALVING | {"goal": goal})
    assert halving.best_first({"b": 2.0, "a": 1.0})[0] == first
