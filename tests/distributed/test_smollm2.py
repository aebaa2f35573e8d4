"""A real model, whose head is its embedding, sharded over two processes: it learns what one process learns."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.models.importing import import_model
from alignkit.recipe import Recipe
from tests.distributed.lab import check_training
from tests.distributed.launching import Run, launch

REPOSITORY = Path(__file__).parents[2]
STEPS = 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_under_zero3(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    model = import_model("smollm2-135m-instruct", tmp_path / "models")
    held_out = tmp_path / "validation.jsonl"
    rows = (
        (REPOSITORY / "recipes/demo/validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    )
    held_out.write_text("".join(rows[:6]), encoding="utf-8")
    recipes = []
    for name in ("one", "two"):
        overrides = [
            f"model.path={model}",
            f"data.train={REPOSITORY / 'recipes/demo/train.jsonl'}",
            f"data.validation={held_out}",
            "data.max_length=96",
            "collapse_guard=null",
            f"training.max_steps={STEPS}",
            "training.micro_batch_size=1",
            "training.eval_steps=null",
            "training.save_steps=1000",
            f"output_dir={tmp_path / name}",
        ]
        recipe = Recipe.load(REPOSITORY / "recipes/f_dpo/smollm2.yaml", overrides)
        recipes.append(tmp_path / f"{name}.yaml")
        recipes[-1].write_text(recipe.to_yaml(), encoding="utf-8")
    runs = []
    for recipe_file, config, processes in zip(recipes, ("single", "zero3"), (1, 2), strict=True):
        done = launch(config, [recipe_file], processes=processes, timeout=900)
        assert done.returncode == 0, done.stdout[-3000:]
        runs.append(Run(recipe_file.with_suffix("")))
    one, two = runs
    for name, deviation in check_training(one, two, "zero3", STEPS, each=False).items():
        record_property(f"smollm2 zero3 f_dpo-lora {name}", f"{deviation:.1e}")
    (before,), (after,) = one.held_out(), two.held_out()
    assert after == pytest.approx(before, rel=1e-3, abs=1e-4)
    whole = one.ranks()[0]["parameter_bytes"]
    assert whole > 500e6
    record_property("smollm2 bytes of weights", [whole, *(rank["parameter_bytes"] for rank in two.ranks())])
