"""Every term has a page, a recipe and a line in the lists, made from its declaration."""

from pathlib import Path

import pytest

import alignkit
from alignkit import terms
from alignkit.errors import MethodError
from alignkit.methods import METHODS
from alignkit.methods.describe_terms import described, markdown
from alignkit.methods.hyperparameters import hyperparameters_of
from alignkit.recipe import Recipe
from tests.tree import ROOT


def test_the_page_of_all_terms_is_what_the_command_prints() -> None:
    assert (ROOT / "docs" / "terms.md").read_text(encoding="utf-8") == markdown()


@pytest.mark.parametrize("name", terms.available())
def test_a_terms_page_names_paper_fidelity_and_what_is_ours(name: str) -> None:
    term, page = terms.get(name), " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())
    assert term.paper in page
    assert f"**Fidelity:** {term.fidelity}" in page
    assert "## What is ours" in page
    assert "has not been measured yet" in page or "evidence" in page
    assert "in our reading" in page or term.code_read


@pytest.mark.parametrize("name", terms.available())
def test_a_terms_recipe_is_a_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = Recipe.load(Path("recipes") / name / "smollm2.yaml")
    assert name in [term.type for term in recipe.terms]
    assert Path(recipe.data.train).is_file()


@pytest.mark.parametrize("name", terms.available())
def test_every_option_has_a_description_and_numbers_have_bounds(name: str) -> None:
    listed = next(one for one in described() if one["type"] == name)
    for option in listed["options"].values():
        assert option["description"]
        for arm in option.get("anyOf", [option]):
            if arm.get("type") in {"number", "integer"}:
                assert {"minimum", "exclusiveMinimum"} & arm.keys(), option
    assert set(listed["hyperparameters"]) == set(listed["options"]) or name == "repel"


def test_a_method_lists_the_terms_that_its_jobs_take() -> None:
    for method in METHODS.values():
        fitting = terms.fitting(method)
        assert ("terms" in hyperparameters_of(method).model_fields) is bool(fitting)
    assert alignkit.terms is terms


def test_an_unknown_type_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(MethodError, match=r"expected one of robust, .*did you mean thresholds"):
        terms.get("threshold")
    with pytest.raises(MethodError, match=r"found .my_package\.terms:Mine."):
        terms.get("my_package.terms:Mine")
