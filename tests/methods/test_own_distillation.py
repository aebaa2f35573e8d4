"""A user's own distillation: a class in this file, named by its import path in a recipe."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import Field
from torch import Tensor

from alignkit import train
from alignkit.errors import RecipeError
from alignkit.kernels.linear_divergence import linear_divergence
from alignkit.losses.distillation import PairOutput, Rows, Tokens, operands, token_metrics
from alignkit.methods import DistillMethod
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.completion import write_completions
from tests.tiny import build_tiny_model


class Mixed(DistillMethod):
    """A student that takes part of the forward KL and part of the reverse KL."""

    share: float = Field(0.5, ge=0, le=1, description="share of the forward KL")

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        """The sum over tokens of share KL(p || q) + (1 - share) KL(q || p)."""
        found = linear_divergence(
            labels=tokens.labels,
            top1=True,
            objective=lambda of: self.share * of.forward_kl + (1 - self.share) * of.reverse_kl,
            **operands(student, teacher),
        )
        return PairOutput.of(tokens, cast(Tensor, found.loss), token_metrics(found))


class Bare(DistillMethod):
    """A student whose states must be its teacher's; it logs nothing but its loss."""

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        return PairOutput.of(tokens, (student.hidden - teacher.hidden).square().sum(dim=1), {})


class Detached(DistillMethod):
    """An objective without gradient."""

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        return PairOutput.of(tokens, torch.zeros(len(tokens.labels)), {})


class PerToken(DistillMethod):
    """An objective that returns one loss per token instead of their sum."""

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        losses = student.hidden.square().sum(dim=1)
        return PairOutput.of(tokens, losses, {})._replace(loss=losses)


class Failing(DistillMethod):
    """An objective that raises an error."""

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        raise KeyError("weights")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own")
    build_tiny_model(path / "model")
    build_tiny_model(path / "teacher", seed=1)
    write_completions(path / "train.jsonl")
    write_completions(path / "validation.jsonl", count=4, start=100)
    return path


def recipe(workplace: Path, name: str, **method: Any) -> Path:
    values = {
        "model": {"path": str(workplace / "model")},
        "data": {"train": str(workplace / "train.jsonl"), "validation": str(workplace / "validation.jsonl")},
        "method": {
            "type": f"{__name__}:{name}",
            "teacher": {"path": str(workplace / "teacher")},
            **method,
        },
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 5e-3},
        "collapse_guard": None,
        "output_dir": str(workplace / name),
    }
    path = workplace / f"{name}.yaml"
    path.write_text(Recipe.parse(values).to_yaml())
    return path


def test_it_trains_two_steps_by_its_import_path(workplace: Path) -> None:
    assert train.main([str(recipe(workplace, "Mixed", share=0.25))]) == 0
    folder = RunFolder(workplace / "Mixed")
    result = folder.read_result()
    assert result is not None
    assert (result["status"], result["steps"]) == ("succeeded", 2)
    metrics = result["metrics"]
    mixed = 0.25 * metrics["valid_forward_kl"] + 0.75 * metrics["valid_reverse_kl"]
    assert metrics["valid_loss"] == pytest.approx(mixed, rel=1e-5)
    assert (folder.adapter / "adapter_model.safetensors").is_file()


def test_one_without_metrics_of_its_own_trains_too(workplace: Path) -> None:
    assert train.main([str(recipe(workplace, "Bare"))]) == 0
    result = RunFolder(workplace / "Bare").read_result()
    assert result is not None
    assert {"valid_loss", "valid_teacher_ece"} <= set(result["metrics"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Detached", "expected a loss with a gradient to the student's hidden states, found none"),
        ("PerToken", r"expected the sum of the tokens' losses, found shape \[4\]"),
        ("Failing", r"Failing.objective fails on four tokens: KeyError: 'weights'"),
    ],
)
def test_an_objective_is_tried_when_the_recipe_is_read(workplace: Path, name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(workplace, name)
