"""A user's own method on completions, and an own D2O: classes in this file, named by their import paths."""

from pathlib import Path

import pytest
from pydantic import Field

from alignkit import train
from alignkit.errors import RecipeError
from alignkit.losses import CompletionLoss, D2OCoefficients, PreferenceLoss, SampleLogps, TokenLogps
from alignkit.methods import D2O, CompletionMethod
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.completion import write_completions
from tests.tiny import build_tiny_model


class Focal(CompletionMethod):
    """Answers whose tokens count less the surer the model is of them."""

    power: float = Field(1.0, ge=0, le=10, description="0 is supervised fine-tuning")

    def loss(self, answers: TokenLogps) -> CompletionLoss:
        """L = -sum_t (1 - p_t)^power log p_t."""
        weights = (1 - answers.logps.exp()) ** self.power
        return CompletionLoss(-(weights * answers.logps).sum(dim=1))


class Whole(CompletionMethod):
    """A loss that is already summed over the answers."""

    def loss(self, answers: TokenLogps) -> CompletionLoss:
        return CompletionLoss(-answers.logps.sum())


class Doubled(D2O):
    """A D2O with another loss, whose coefficients are still the first one's."""

    type: str = ""  # type: ignore[assignment]

    def loss(self, logps: SampleLogps) -> PreferenceLoss:
        return super().loss(logps).plus(logps.rejected)


class Doubling(Doubled):
    """A D2O with another loss and the coefficients to it."""

    def coefficients(self, logps: SampleLogps) -> D2OCoefficients:
        found = super().coefficients(logps)
        return D2OCoefficients(found.samples, found.rejected + 1 / len(logps.rejected))


def parsed(name: str, **parts: object) -> Recipe:
    method = {"type": f"{__name__}:{name}"}
    return Recipe.parse(
        {"model": {"path": "m"}, "data": {"train": "t"}, "method": method, "output_dir": "o", **parts}
    )


def test_it_trains_two_steps_by_its_import_path(tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "model")
    write_completions(tmp_path / "train.jsonl")
    recipe = parsed(
        "Focal",
        model={"path": str(tmp_path / "model")},
        data={"train": str(tmp_path / "train.jsonl")},
        training={"max_steps": 2, "batch_size": 4},
        collapse_guard=None,
        output_dir=str(tmp_path / "run"),
    )
    (tmp_path / "run.yaml").write_text(recipe.to_yaml())
    assert train.main([str(tmp_path / "run.yaml")]) == 0
    result = RunFolder(tmp_path / "run").read_result()
    assert result is not None
    assert (result["status"], result["steps"]) == ("succeeded", 2)


def test_a_loss_is_tried_when_the_recipe_is_read() -> None:
    with pytest.raises(
        RecipeError, match=r"Whole.loss: expected losses of shape \[2\] for two answers, found \[\]"
    ):
        parsed("Whole")


def test_an_own_d2o_whose_coefficients_are_not_its_losss_gradient_is_refused() -> None:
    assert isinstance(parsed("Doubling").method, Doubling)
    with pytest.raises(
        RecipeError, match=r"Doubled.coefficients: expected the gradient of loss, whose rejected are"
    ):
        parsed("Doubled")
