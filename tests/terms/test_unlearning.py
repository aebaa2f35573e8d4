"""`alignkit unlearn`: the stages it starts, and that a finished one is not started again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from alignkit.errors import AlignkitError
from alignkit.recipe import Recipe
from alignkit.unlearning import unlearn


class Stages:
    """A launcher that only makes the adapter's folder of a recipe."""

    def __init__(self, *, fails: bool = False) -> None:
        self.recipes: list[Recipe] = []
        self.overrides: list[str] = []
        self.fails = fails

    def __call__(self, command: Sequence[str]) -> int:
        path = next(Path(word) for word in command if word.endswith(".yaml"))
        recipe = Recipe.parse(yaml.safe_load(path.read_text()))
        self.recipes.append(recipe)
        self.overrides += [word for word in command if word.startswith("training.")]
        if not self.fails:
            (Path(recipe.output_dir) / "adapter").mkdir(parents=True)
        return int(self.fails)


def started(folder: Path, stages: Stages) -> Path:
    return unlearn(
        folder / "bad.jsonl",
        folder / "good.jsonl",
        model="m",
        output=folder / "out",
        seeds=2,
        weight=0.5,
        overrides=["training.max_steps=2"],
        start=stages,
    )


def test_both_stages_run_once(tmp_path: Path) -> None:
    stages = Stages()
    result = started(tmp_path, stages)
    first, second, last = stages.recipes
    files = [Path(one.data.train).name for one in stages.recipes]
    assert files == ["bad.jsonl", "bad.jsonl", "good.jsonl"]
    assert (first.seed, second.seed) == (0, 1)
    (term,) = last.terms
    assert (term.type, term.weight) == ("repel", 0.5)
    assert term.adapters == [str(Path(one.output_dir) / "adapter") for one in (first, second)]
    assert last.model.adapter is None  # the start model, not what stage one made
    assert result == Path(last.output_dir)
    assert stages.overrides == ["training.max_steps=2"] * 3
    again = Stages()
    assert started(tmp_path, again) == result
    assert again.recipes == []


def test_a_stage_that_fails_ends_it(tmp_path: Path) -> None:
    stages = Stages(fails=True)
    with pytest.raises(AlignkitError, match="the stage negatives-0 failed with status 1"):
        started(tmp_path, stages)
    assert len(stages.recipes) == 1
