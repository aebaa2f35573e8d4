"""KTO from recipes, jobs and files, and a labelled method of one's own."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignkit.data import check_file
from alignkit.errors import RecipeError
from alignkit.losses import LabelledLogps, LabelledLoss
from alignkit.methods import KTO, LabelledMethod
from alignkit.methods.work import Batch, HeadSize
from alignkit.recipe import Recipe
from tests.jobs import job_of
from tests.labelled import row, write_labelled
from tests.preference import write_pairs

RECIPES = Path(__file__).parents[2] / "recipes"


class Scalar(LabelledMethod):
    """A labelled method whose loss is a mean already."""

    def loss(self, rows: LabelledLogps) -> LabelledLoss:
        return LabelledLoss(-rows.logps.mean(), rows.logps.detach())


class WithoutReference(LabelledMethod):
    """A labelled method that says it has no reference."""

    uses_reference: ClassVar[bool] = False


def recipe(method: dict[str, Any], **sections: Any) -> Recipe:
    values = {"model": {"path": "m"}, "data": {"train": "t"}, "method": method, "output_dir": "o", **sections}
    return Recipe.parse(values)


@pytest.mark.parametrize("method", ["simpo", "orpo", "mapo", "ipo", "kto"])
def test_the_recipes_that_come_with_it_are_valid(method: str) -> None:
    found = Recipe.load(RECIPES / method / "smollm2.yaml")
    assert found.method.type == method
    assert found.output_dir == f"runs/{method}-smollm2"


def test_a_job_becomes_a_recipe() -> None:
    plain = job_of("kto")
    assert plain.recipe.method == KTO()
    assert plain.hyperparameters["beta"] == 0.1
    given = job_of("kto", beta=0.3, desirable_weight=2, undesirable_weight=0.5).recipe.method
    assert given == KTO(beta=0.3, desirable_weight=2.0, undesirable_weight=0.5)


@pytest.mark.parametrize(("label", "missing"), [(True, "undesirable"), (False, "desirable")])
def test_a_file_of_one_label_is_refused_in_one_sentence(tmp_path: Path, label: bool, missing: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row(index), "label": label}) + "\n" for index in range(3)))
    report = check_file(file, "kto")
    assert not report.ok
    assert report.summary() == f"no row is {missing}: expected desirable and undesirable ones"


def test_files_of_both_labels_and_of_pairs_are_taken(tmp_path: Path) -> None:
    assert check_file(write_labelled(tmp_path / "labelled.jsonl"), "kto").ok
    assert check_file(write_pairs(tmp_path / "pairs.jsonl"), "kto").ok


@pytest.mark.parametrize(("lora", "models"), [({"r": 4}, {"policy"}), (None, {"policy", "reference"})])
def test_the_estimate_counts_the_mismatched_answers(lora: Any, models: set[str]) -> None:
    plan = KTO().plan(recipe({"type": "kto"}, lora=lora))
    assert set(plan.models) == models
    size = HeadSize(64, 512, 4, has_gradient=True, trains=lora is None)
    batch = Batch(3, 20.0, 8.0, 12.0, 1.0, dict.fromkeys(models, size), gpu=False)
    passes = plan.work(batch).passes
    assert {step.sequences for step in passes} == {3}
    assert sum(step.times for step in passes if step.trains) == 1
    assert sum(step.times for step in passes if step.purpose == "reference") == 2
    assert sum(step.times for step in passes) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Scalar", r"Scalar.loss: expected losses of shape \[4\] for four answers, found \[\]"),
        ("WithoutReference", "WithoutReference: expected uses_reference = True"),
    ],
)
def test_an_own_loss_is_tried_when_the_recipe_is_read(name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe({"type": f"{__name__}:{name}"})
