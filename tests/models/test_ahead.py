from pathlib import Path

import pytest

from alignkit.models import ahead


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_what_is_held_is_taken_once(folder: Path) -> None:
    model = object()
    ahead.hold("model", folder, ("float32", None), model)
    assert ahead.take("tokenizer", folder, ("float32", None)) is None
    assert ahead.take("model", folder, ("float32", None)) is model
    assert ahead.take("model", folder, ("float32", None)) is None


def test_other_options_or_another_folder_get_nothing(folder: Path) -> None:
    ahead.hold("model", folder, ("float32", None), object())
    assert ahead.take("model", folder, ("bfloat16", None)) is None
    assert ahead.take("model", folder / "other", ("float32", None)) is None


def test_a_model_whose_files_changed_since_is_loaded_again(folder: Path) -> None:
    ahead.hold("model", folder, (), object())
    (folder / "config.json").write_text("{} ")
    assert ahead.take("model", folder, ()) is None
