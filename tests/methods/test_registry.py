"""Declaring a method: what is refused, and what follows from a declaration."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from alignkit.data.schemas import schema_for
from alignkit.errors import DataError, MethodError, RecipeError
from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods import METHODS, Method, PairMethod, get, hyperparameters_of, register
from alignkit.options import CONTENT_MATTERS, RECIPES_ONLY, InJobs
from alignkit.recipe import Recipe


class Taken(PairMethod):
    """A method whose name is taken."""

    type: Literal["f_dpo"] = "f_dpo"


class Twice(PairMethod):
    """A method with an option that every job has."""

    max_length: int = Field(3, description="not the tokens of a row")


class Rowless(Method):
    """A method that does not declare its kind of row."""


class OtherRows(Method):
    """A method on an unknown kind of row."""

    rows: ClassVar[str] = "triplets"


class Scalar(PairMethod):
    """A method whose loss is a mean already."""

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        return PreferenceLoss(-pairs.chosen.mean(), pairs.chosen.detach(), pairs.rejected.detach())


class NeedsReference(PairMethod):
    """A method that declares no reference but reads it."""

    uses_reference: ClassVar[bool] = False

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        return PreferenceLoss(pairs.chosen - pairs.ref_chosen, pairs.chosen, pairs.rejected)


class Detached(PairMethod):
    """A method whose loss has no gradient."""

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        return PreferenceLoss(pairs.chosen.detach(), pairs.chosen.detach(), pairs.rejected.detach())


class Marked(PairMethod):
    """A method with an option of every mark."""

    plain: float = Field(1.0, gt=0, le=9, description="as it is")
    narrow: Annotated[float, InJobs(gt=0.5, le=2)] = Field(1.0, ge=0, le=9, description="narrower")
    auto: Annotated[int, InJobs(auto=True)] = Field(4, ge=1, description="auto")
    hidden: Annotated[str | None, RECIPES_ONLY] = Field(None, description="recipes only")
    folder: Annotated[str | None, CONTENT_MATTERS] = Field(None, description="a path")


NOT_A_METHOD = 3


def recipe(method: dict[str, Any]) -> Recipe:
    return Recipe.parse({"model": {"path": "m"}, "data": {"train": "t"}, "method": method, "output_dir": "o"})


def test_a_type_that_is_taken_is_refused() -> None:
    with pytest.raises(MethodError, match="the type 'f_dpo' is taken by FDPO; choose another"):
        register(Taken)
    assert METHODS["f_dpo"].__name__ == "FDPO"


def test_registering_a_method_twice_changes_nothing() -> None:
    assert register(METHODS["ipo"]) is METHODS["ipo"]


def test_an_option_that_every_job_has_is_declared_twice() -> None:
    with pytest.raises(MethodError, match="Twice: the option 'max_length' is declared twice"):
        get(f"{__name__}:Twice")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package.losses:Margin", "cannot import 'no_such_package.losses': ModuleNotFoundError"),
        (f"{__name__}:Missing", "has no 'Missing'"),
        (f"{__name__}:NOT_A_METHOD", "expected a subclass of alignkit.methods.Method"),
        (f"{__name__}:Rowless", "expected `rows`"),
        (f"{__name__}:OtherRows", "expected `rows` to be one of preference, completion"),
        (f"{__name__}:Twice", "declared twice"),
        ("ppo", "or package.module:Class, found 'ppo'"),
        (None, "found None"),
    ],
)
def test_a_recipes_method_that_cannot_be_had_is_refused_with_the_reason(path: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe({"type": path})
    assert [issue.path for issue in caught.value.issues] == ["method.type"]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Scalar", r"Scalar.loss: expected losses of shape \[4\] for four pairs, found \[\]"),
        ("NeedsReference", r"NeedsReference.loss fails on four pairs, with ref_chosen and ref_rejected None"),
        ("Detached", "expected losses with a gradient"),
    ],
)
def test_an_own_loss_is_tried_when_the_recipe_is_read(name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe({"type": f"{__name__}:{name}"})


def test_a_kind_of_row_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(DataError, match="found 'triplets'"):
        schema_for(OtherRows)


def test_a_jobs_options_follow_from_the_marks() -> None:
    options = hyperparameters_of(Marked).model_json_schema()["properties"]
    assert "hidden" not in options
    assert "folder" not in options
    assert (options["plain"]["exclusiveMinimum"], options["plain"]["maximum"]) == (0, 9)
    narrow = options["narrow"]
    assert (narrow["exclusiveMinimum"], narrow["maximum"]) == (0.5, 2)
    assert "minimum" not in narrow
    assert options["auto"]["default"] == "auto"


@pytest.mark.parametrize("name", METHODS)
def test_every_option_and_hyperparameter_is_described(name: str) -> None:
    method = METHODS[name]
    assert all(field.description for field in method.own_options().values())
    assert all(field.description for field in hyperparameters_of(method).model_fields.values())
    assert method.summary()
