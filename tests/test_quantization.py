"""QLoRA and 8-bit optimizers by bitsandbytes, where it is installed; it has them for CPUs too."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignkit import train
from alignkit.models import QUANTIZATIONS, load_causal_lm
from alignkit.recipe import Recipe
from alignkit.run_folder import RunFolder
from tests.preference import write_pairs
from tests.tiny import build_tiny_model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    return path


def trained(inputs: Path, output: Path, model: dict[str, Any], training: dict[str, Any]) -> RunFolder:
    recipe = Recipe.parse(
        {
            "model": {"path": str(inputs / "model"), **model},
            "data": {"train": str(inputs / "train.jsonl"), "max_length": 128},
            "method": {"type": "f_dpo", "beta": 0.5},
            "lora": {"r": 4},
            "training": {"max_steps": 3, "batch_size": 4, "learning_rate": 5e-3, **training},
            "output_dir": str(output),
        }
    )
    folder = RunFolder(output)
    path = output.with_suffix(".yaml")
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert train.main([str(path)]) == 0, folder.read_result()
    return folder


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_adapters_train_over_quantised_weights(inputs: Path, tmp_path: Path, name: str) -> None:
    model, _ = load_causal_lm(inputs / "model", "float32", field="model.path", quantization=name)
    projection = model.model.layers[0].self_attn.q_proj.weight
    assert projection.numel() * projection.element_size() < 64 * 64 * 4 / 2
    folder = trained(inputs, tmp_path / "run", {"quantization": name}, {})
    weights = load_file(folder.adapter / "adapter_model.safetensors")
    assert all(float(weight.norm()) > 0 for key, weight in weights.items() if "lora_B" in key)


def test_an_optimizer_of_8_bits(inputs: Path, tmp_path: Path) -> None:
    folder = trained(inputs, tmp_path / "run", {}, {"optimizer": "adamw_8bit"})
    result = folder.read_result()
    assert result is not None
    assert result["steps"] == 3
