"""Chat templates for models without one."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from alignkit.errors import ModelError, RecipeError
from alignkit.models import importing
from alignkit.models.chat_templates import available, read_template
from alignkit.recipe import Recipe
from alignkit.run.environment_checks import require
from alignkit.train import main
from tests.preference import write_pairs
from tests.tiny import CHAT_TEMPLATE, build_tiny_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model that has no chat template."""
    folder = build_tiny_model(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


def test_trls_templates_are_there_by_name() -> None:
    assert {"llama3", "qwen2_5", "gemma3"} <= set(available())
    assert not [name for name in available() if name.endswith("_training")]


@pytest.mark.parametrize("name", available())
def test_every_one_of_them_can_be_read(name: str) -> None:
    assert "{" in read_template(name)


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(CHAT_TEMPLATE)
    assert read_template(str(file)) == CHAT_TEMPLATE


def test_a_typo_is_told_the_nearest_name() -> None:
    with pytest.raises(ModelError, match=r"found 'lama3'.*llama3"):
        read_template("lama3")


def test_a_file_that_is_no_template_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(ModelError, match="is not a Jinja template: line 2"):
        read_template(str(file))


def recipe_on(base: Path, tmp_path: Path, template: str) -> dict[str, object]:
    return {
        "model": {"path": str(base), "chat_template": template},
        "data": {"train": str(write_pairs(tmp_path / "pairs.jsonl", 2)), "max_length": 64},
        "method": {"type": "f_dpo"},
        "training": {"max_steps": 1},
        "collapse_guard": None,
        "output_dir": str(tmp_path / "run"),
    }


def test_a_run_trains_with_the_template_and_keeps_it(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(CHAT_TEMPLATE)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_on(base, tmp_path, str(file))))
    assert main([str(recipe)]) == 0
    kept = AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter")
    assert kept.chat_template == CHAT_TEMPLATE


def test_an_unknown_template_is_refused_before_anything_is_loaded(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.chat_template: expected a file"):
        require(Recipe.parse(recipe_on(base, tmp_path, "nothing")))


def test_an_import_gives_a_model_its_template(base: Path, tmp_path: Path) -> None:
    target = importing.import_model(
        str(base), tmp_path / "models", chat_template="llama3", report=lambda _: None
    )
    assert AutoTokenizer.from_pretrained(target).chat_template == read_template("llama3")
