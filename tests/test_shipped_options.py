"""Every option that a run can have is in a recipe for a small model."""

from pathlib import Path

import pytest

from alignkit.methods.sinkd import SOLVERS
from alignkit.recipe import Recipe
from tests.options import sections, steps
from tests.tree import ROOT


@pytest.fixture(scope="module")
def used() -> set[str]:
    """The options that the recipes for SmolLM2 use."""
    found: set[str] = set()
    for path in sorted((ROOT / "recipes").glob("*/smollm2*.yaml")):
        recipe = Recipe.load(Path(path))
        training, data = recipe.training, recipe.data
        given = {
            "tune": recipe.tune,
            "elastic": recipe.elastic,
            "lora_nested": recipe.lora and recipe.lora.nested,
            "early_stopping": training.early_stopping,
            "flip": data.flip,
        }
        found |= {name for name, value in given.items() if value is not None}
        found |= {step.type for step in recipe.after} | {training.gradient}
        found |= {getattr(recipe.method, "solver", "none")}
    return found


@pytest.mark.parametrize("option", [*sections(), *steps(), *SOLVERS, "orthogonal"])
def test_a_recipe_uses_it(used: set[str], option: str) -> None:
    assert option in used
