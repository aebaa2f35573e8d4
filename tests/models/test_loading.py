"""A model is loaded whole or not at all: no weight is made up, and none read without its scale."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit.errors import ModelError
from alignkit.models.loading import gated, load_tokenizer, load_weights
from tests.tiny import build_tiny_model

UP = "model.layers.0.mlp.up_proj.weight"
Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop(UP), f"lacks 1 of the model's weights, which would be random: {UP}"),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if ".layers.1." in name],
            "lacks 9 of the model's weights, which would be random: model.layers.1.input_layernorm.weight, ",
        ),
        (
            lambda weights: weights.update({f"{UP}_scale": torch.ones(1)}),
            f"without a quantization_config in its config.json \\({UP}_scale\\)",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    file = build_tiny_model(tmp_path) / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"model.path: {tmp_path} .*{said}"):
        load_weights(tmp_path, "float32", field="model.path")


def test_a_tied_head_and_tensors_of_other_parts_are_no_matter(tmp_path: Path) -> None:
    file = build_tiny_model(tmp_path, tied=True) / "model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    save_file(weights | {"vision_tower.logit_scale": torch.ones(1)}, file, {"format": "pt"})
    model = load_weights(tmp_path, "float32", field="model.path")
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_a_gated_model_names_its_licence_page_and_how_to_sign_in() -> None:
    class GatedRepoError(OSError):
        """The hub's error, by its name alone."""

    wrapped = OSError("We couldn't connect")
    wrapped.__cause__ = GatedRepoError("403 Client Error")
    said = gated("meta-llama/Llama-3.1-8B", wrapped)
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B" in said
    assert "`hf auth login`" in said
    assert gated("meta-llama/Llama-3.1-8B", OSError("You are trying to access a gated repo.")) == said
    assert gated("someone/model", OSError("no network")) == ""


def test_a_name_that_is_not_imported_says_how_to_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ModelError, match=r"^model\.path: no model smollm9 is imported.*`alignkit models import smollm9`"
    ):
        load_tokenizer("smollm9", field="model.path")
