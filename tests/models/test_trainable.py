"""A model's configuration decides whether the model can be trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alignkit.errors import ModelError, RecipeError
from alignkit.jobspec import JobSpec, recipe_for_job
from alignkit.methods import ModelSource
from alignkit.models import importing
from alignkit.models.trainable import config_of, positions_of, quantization_of, require_trainable
from alignkit.recipe import Recipe
from alignkit.run.environment_checks import require, settle_length
from tests.architectures import tiny_config
from tests.tiny import build_tiny_model

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The sixteen numbers of four bits in the OCP microscaling formats."""
QUANTISED = ["gguf", "awq", "gptq", "compressed-tensors", "fbgemm_fp8", "hqq", "a-method-of-tomorrow"]


def quiet(_: str) -> None:
    """Report nothing."""


def with_config(folder: Path, **values: Any) -> Path:
    """The model folder, its configuration changed."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def recipe_on(folder: Path, tmp_path: Path, **changes: Any) -> Recipe:
    return Recipe.parse(
        {
            "model": {"path": str(folder)},
            "data": {"train": str(tmp_path / "train.jsonl")},
            "method": {"type": "f_dpo"},
            "output_dir": str(tmp_path / "run"),
        }
        | changes
    )


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_refused_in_one_sentence(method: str) -> None:
    with pytest.raises(
        ModelError, match=f"quantised with {method.upper()}, which cannot be trained"
    ) as refused:
        require_trainable({"model_type": "llama", "quantization_config": {"quant_method": method}})
    assert "\n" not in str(refused.value)


def test_a_quantised_language_model_inside_a_larger_one_is_found() -> None:
    config = {"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "AWQ"}}}
    assert quantization_of(config) == "awq"


@pytest.mark.parametrize("given", [{"load_in_4bit": True}, {"quant_method": "bitsandbytes"}])
def test_bitsandbytes_trains_adapters_alone(given: dict[str, Any]) -> None:
    config = {"model_type": "llama", "quantization_config": given}
    require_trainable(config)
    with pytest.raises(ModelError, match="so only adapters can be trained"):
        require_trainable(config, all_weights=True)


def test_an_encoder_is_refused_and_the_same_as_a_decoder_is_not() -> None:
    with pytest.raises(ModelError, match="bert models cannot be trained: BertLMHeadModel is not a causal"):
        require_trainable({"model_type": "bert"})
    require_trainable({"model_type": "bert", "is_decoder": True})


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_configuration_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"its? .*config.json"):
        config_of(tmp_path)


def test_a_quantised_model_is_not_imported(tmp_path: Path) -> None:
    source = with_config(build_tiny_model(tmp_path / "tiny"), quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="GPTQ, which cannot be trained"):
        importing.import_model(str(source), tmp_path / "models", report=quiet)
    assert importing.available(tmp_path / "models") == []


@pytest.mark.parametrize("beside", ["hf_quant_config.json", "quantize_config.json"])
def test_weights_that_a_file_beside_the_configuration_calls_quantised_are_refused(
    tmp_path: Path, beside: str
) -> None:
    source = build_tiny_model(tmp_path / "source")
    (source / beside).write_text("{}")
    with pytest.raises(ModelError, match="its weights are quantised with"):
        importing.import_model(str(source), tmp_path / "models", report=lambda _: None)


def test_a_recipe_of_a_quantised_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    source = with_config(build_tiny_model(tmp_path / "tiny"), quantization_config={"quant_method": "awq"})
    with pytest.raises(RecipeError, match=r"model\.path: .* AWQ"):
        require(recipe_on(source, tmp_path))


def test_fp8_weights_are_imported_in_bfloat16(tmp_path: Path) -> None:
    source = build_tiny_model(tmp_path / "tiny")
    whole = load_file(source / "model.safetensors")
    kept: dict[str, torch.Tensor] = {}
    for name, weight in whole.items():
        if "_proj" not in name:
            kept[name] = weight
            continue
        scale = weight.abs().max() / 448
        kept[name] = (weight / scale).to(torch.float8_e4m3fn)
        kept[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    with_config(source, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    target = importing.import_model(str(source), tmp_path / "models", report=quiet)
    assert quantization_of(config_of(target)) is None
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight.float(), whole[name], rtol=0.08, atol=0.02)


def test_mxfp4_experts_are_imported_in_bfloat16(tmp_path: Path) -> None:
    source = with_config(build_tiny_model(tmp_path / "tiny"))
    config = tiny_config("gpt_oss")
    config.intermediate_size = 64  # the format's blocks are of 32 numbers
    AutoModelForCausalLM.from_config(config).save_pretrained(source)
    kept = load_file(source / "model.safetensors")
    expected = {}
    for name in [name for name in kept if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = kept.pop(name).shape
        nibbles = torch.randint(0, 16, (experts, outputs, inputs // 32, 16, 2))
        kept[f"{name}_blocks"] = (nibbles[..., 0] | nibbles[..., 1] << 4).to(torch.uint8)
        kept[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 126, dtype=torch.uint8)
        values = E2M1[nibbles].reshape(experts, outputs, inputs) / 2
        expected[name] = values.transpose(1, 2)
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    with_config(source, quantization_config={"quant_method": "mxfp4"})
    target = importing.import_model(str(source), tmp_path / "models", report=quiet)
    assert quantization_of(config_of(target)) is None
    state = AutoModelForCausalLM.from_pretrained(target).state_dict()
    for name, values in expected.items():
        torch.testing.assert_close(state[name].float(), values)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 8192}, "max_position_embeddings": 16}, 8192),
        ({"model_type": "mamba"}, None),
    ],
)
def test_positions_are_found_whatever_they_are_called(config: dict[str, Any], positions: int | None) -> None:
    assert positions_of(config) == positions


def test_a_recipe_without_a_length_stays_within_the_positions(tmp_path: Path) -> None:
    source = with_config(build_tiny_model(tmp_path / "tiny"), max_position_embeddings=128)
    assert settle_length(recipe_on(source, tmp_path)).data.max_length == 128


def test_a_recipe_of_more_than_the_positions_is_refused(tmp_path: Path) -> None:
    source = with_config(build_tiny_model(tmp_path / "tiny"), max_position_embeddings=128)
    recipe = recipe_on(source, tmp_path, data={"train": "x.jsonl", "max_length": 129})
    with pytest.raises(RecipeError, match=r"data\.max_length: expected at most 128, .* found 129"):
        settle_length(recipe)


@pytest.mark.parametrize(("asked", "length"), [("auto", 128), (64, 64)])
def test_a_jobs_length_stays_within_the_positions(tmp_path: Path, asked: Any, length: int) -> None:
    assert job_of(tmp_path, asked).recipe.data.max_length == length


def test_a_job_of_more_than_the_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"hyperparameters\.max_length: expected at most 128"):
        job_of(tmp_path, 256)


def job_of(tmp_path: Path, max_length: Any) -> JobSpec:
    (tmp_path / "config.json").write_text('{"n_positions": 128}')
    return recipe_for_job(
        method="dpo",
        hyperparameters={"max_length": max_length},
        start=ModelSource(str(tmp_path)),
        train_file=tmp_path / "train.jsonl",
        validation_file=None,
        train_rows=8,
        seed=0,
        output_dir=tmp_path / "run",
        resolve_model=lambda _: ModelSource(""),
    )
