"""A value out of an option's bounds is refused in a job and in a recipe, with the option's place."""

import re

import pytest

from alignkit.errors import RecipeError
from tests.jobs import job_of, recipe_of

OUT_OF_BOUNDS = [
    ("kto", "beta", 0, "greater than 0"),
    ("kto", "beta", -1, "greater than 0"),
    ("kto", "desirable_weight", 0, "greater than 0"),
    ("kto", "desirable_weight", -1, "greater than 0"),
    ("kto", "undesirable_weight", 0, "greater than 0"),
    ("kto", "undesirable_weight", -1, "greater than 0"),
    ("mapo", "beta", -1, "greater than or equal to 0"),
    ("mapo", "gain", 0, "greater than 0"),
    ("ps_kd", "final_weight", 1.1, "less than or equal to 1"),
    ("ps_kd", "refresh_steps", 0, "greater than or equal to 1"),
]


@pytest.mark.parametrize(("method", "option", "value", "words"), OUT_OF_BOUNDS)
def test_a_value_out_of_bounds_is_refused(method: str, option: str, value: float, words: str) -> None:
    with pytest.raises(RecipeError, match=rf"^method\.{method}\.hyperparameters\.{option}: .*{words}"):
        job_of(method, **{option: value})
    expected = rf"^method\.{option}: expected {words}, found {re.escape(str(value))}"
    with pytest.raises(RecipeError, match=expected):
        recipe_of(method, **{option: value})
