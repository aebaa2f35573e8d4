"""A checkpoint that is not whole is refused by the headers of its files, before anything is read or queued."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

from alignkit.errors import ModelError
from alignkit.models import importing
from alignkit.models.loading import load_weights
from alignkit.models.stored_weights import require_whole
from tests.tiny import build_tiny_model

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
SOURCE = "checkpoint from which it was quantised"
Change = Callable[[dict[str, Tensor]], object]
BROKEN: dict[str, tuple[Change, str]] = {
    "a missing weight": (
        lambda weights: weights.pop(UP),
        f"it lacks 1 of the model's weights, which would be random: {UP}",
    ),
    "scales beside weights": (
        lambda weights: weights.update({f"{UP}_scale": torch.ones(1)}),
        f"it holds quantised weights without a quantization_config in its config.json ({UP}_scale); use the {SOURCE}",
    ),
    "another shape": (
        lambda weights: weights.update({NORM: torch.ones(3)}),
        f"it has 1 weights of another shape than its config.json says: {NORM}, expected [64], found [3]",
    ),
}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def change_weights(folder: Path, change: Change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module", params=BROKEN)
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(a folder whose weights are not those of its configuration, the sentence that says so)."""
    change, said = BROKEN[request.param]
    folder = build_tiny_model(tmp_path_factory.mktemp("broken") / "tiny")
    change_weights(folder, change)
    return folder, said


def test_a_model_that_would_not_be_loaded_whole_is_refused(broken: tuple[Path, str]) -> None:
    folder, said = broken
    with pytest.raises(ModelError) as refused:
        require_whole(folder)
    assert str(refused.value) == said


def test_loading_says_the_same(broken: tuple[Path, str]) -> None:
    folder, said = broken
    with pytest.raises(ModelError) as refused:
        load_weights(folder, "float32", field="model.path")
    assert str(refused.value) == f"model.path: {folder} {said.removeprefix('it ')}"


def test_an_import_refuses_it_and_leaves_nothing(broken: tuple[Path, str], tmp_path: Path) -> None:
    folder, said = broken
    with pytest.raises(ModelError) as refused:
        importing.import_model(str(folder), tmp_path / "models", report=lambda _: None)
    assert str(refused.value) == f"{folder}: {said}"
    assert importing.available(tmp_path / "models") == []


def test_the_same_weights_in_another_format_are_no_matter(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path)
    save_file({"layers.0.w1.qscale_weight": torch.ones(1)}, folder / "consolidated.safetensors")
    require_whole(folder)
    change_weights(folder, lambda weights: weights.pop(UP))
    with pytest.raises(ModelError, match="lacks 1"):
        require_whole(folder)


def test_a_checkpoint_in_parts_is_judged_by_all_of_them(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(build_tiny_model(tmp_path / "one")).save_pretrained(
        tmp_path, max_shard_size="200KB"
    )
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    require_whole(tmp_path)
    parts[-1].unlink()
    with pytest.raises(ModelError, match=f"index.json names missing files: {parts[-1].name}"):
        require_whole(tmp_path)


def test_a_model_that_was_mended_is_taken(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    change_weights(folder, lambda weights: weights.pop(UP))
    with pytest.raises(ModelError):
        require_whole(folder)
    (folder / "model.safetensors").write_bytes(whole)
    require_whole(folder)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    file = build_tiny_model(tmp_path) / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a safetensors file"):
        require_whole(tmp_path)


def test_a_tied_head_and_tensors_of_other_parts_are_no_matter(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path, tied=True)
    change_weights(folder, lambda weights: weights.update({"vision_tower.logit_scale": torch.ones(1)}))
    require_whole(folder)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1),
        MixtralConfig(num_local_experts=4, **SMALL),
    ],
    ids=["no prefix", "experts that are joined while loading"],
)
def test_names_that_transformers_changes_while_loading_are_no_matter(tmp_path: Path, config: object) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("transformer."): weight for name, weight in load_file(file).items()}, file)
    require_whole(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop(next(name for name in weights if ".0." in name)))
    with pytest.raises(ModelError, match="it lacks"):
        require_whole(tmp_path)
    with pytest.raises(ModelError, match=f"^model.path: {tmp_path} lacks"):
        load_weights(tmp_path, "float32", field="model.path")


def test_what_loading_alone_can_judge_is_left_to_it(tmp_path: Path) -> None:
    require_whole(tmp_path / "meta" / "llama")  # a hub id
    (tmp_path / "config.json").write_text("{}")
    require_whole(tmp_path)
