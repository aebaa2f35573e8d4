"""QLoRA and 8-bit optimizers by bitsandbytes, where it is installed; it has them for CPUs too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkit import train
from alignkit.models.loading import QUANTIZATIONS, load_causal_lm
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.preference import write_pairs
from tests.tiny import build_tiny_adapter, build_tiny_model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "nf4" else pytest.mark.slow) for name in QUANTIZATIONS]
)


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
            **({} if "adapter" in model else {"lora": {"r": 4}}),
            "training": {"max_steps": 3, "batch_size": 4, "learning_rate": 5e-3, **training},
            "output_dir": str(output),
        }
    )
    folder = RunFolder(output)
    path = output.with_suffix(".yaml")
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert train.main([str(path)]) == 0, folder.read_result()
    return folder


@EACH
def test_adapters_train_over_quantised_weights(inputs: Path, tmp_path: Path, name: str) -> None:
    model, _ = load_causal_lm(inputs / "model", "float32", field="model.path", quantization=name)
    projection = model.model.layers[0].self_attn.q_proj.weight
    assert projection.numel() * projection.element_size() < 64 * 64 * 4 / 2
    folder = trained(inputs, tmp_path / "run", {"quantization": name}, {})
    weights = load_file(folder.adapter / "adapter_model.safetensors")
    assert all(float(weight.norm()) > 0 for key, weight in weights.items() if "lora_B" in key)


@pytest.mark.slow
@EACH
def test_an_adapter_trains_on_over_quantised_weights(inputs: Path, tmp_path: Path, name: str) -> None:
    build_tiny_adapter(inputs / "model", tmp_path / "adapter")
    model = {"quantization": name, "adapter": str(tmp_path / "adapter")}
    folder = trained(inputs, tmp_path / "run", model, {"logging_steps": 1})
    lines = folder.events.read_text(encoding="utf-8").splitlines()
    steps = [data for line in lines if "train_logratios_chosen" in (data := json.loads(line)["data"])]
    assert steps[0]["train_logratios_chosen"] == pytest.approx(0, abs=1e-4), "it begins as its reference"
    before, after = (
        load_file(path / "adapter_model.safetensors") for path in (tmp_path / "adapter", folder.adapter)
    )
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[key].float(), after[key].float()) for key in before)


def test_an_optimizer_of_8_bits(inputs: Path, tmp_path: Path) -> None:
    folder = trained(inputs, tmp_path / "run", {}, {"optimizer": "adamw_8bit"})
    result = folder.read_result()
    assert result is not None
    assert result["steps"] == 3
