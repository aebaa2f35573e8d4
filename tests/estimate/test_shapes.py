"""Shapes: published counts, peft's own count, and what has none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from alignkit.adapter_sections import LoraSection
from alignkit.estimate import EstimateError
from alignkit.estimate.shapes import known_models, known_name, read_shape
from alignkit.methods.work import ModelUse
from alignkit.models.adapters import peft_config
from tests.estimate.small import EXPERTS, build_small_model


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("qwen2.5-7b", 7_615_616_512),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_known_models_have_their_published_size(name: str, parameters: int) -> None:
    shape = read_shape(ModelUse(name, "bfloat16", "model.path"))
    assert (shape.parameters, shape.trainable) == (parameters, 0)
    assert shape.weight_bytes == 2 * parameters


def test_every_known_model_can_be_built() -> None:
    for name in known_models():
        assert read_shape(ModelUse(name, "bfloat16", "model.path")).parameters > 1e8


def test_a_name_may_have_more_behind_it() -> None:
    assert known_name("path/to/llama-3.1-8b-sft") == "llama-3.1-8b"
    assert known_name("Qwen/Qwen2.5-7B-Instruct") == "qwen2.5-7b"
    assert known_name("meta/llama-3.1-8") is None


@pytest.mark.parametrize("lora", [None, LoraSection(r=4), LoraSection(r=2, target_modules=["q_proj"])])
def test_a_folder_counts_as_the_loaded_model_does(tmp_path: Path, lora: LoraSection | None) -> None:
    folder = build_small_model(tmp_path / "small", layers=2)
    real = AutoModelForCausalLM.from_pretrained(folder)
    if lora is not None:
        real = get_peft_model(real, peft_config(lora))
    shape = read_shape(ModelUse(str(folder), "float32", "model.path", trains=True, lora=lora))
    assert shape.parameters == sum(weight.numel() for weight in real.parameters())
    assert shape.trainable == sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
    assert (shape.head_trains, shape.embedding_trains) == (lora is None, lora is None)
    assert shape.trained_bytes == 4 * shape.trainable


def test_adapters_over_16_bit_weights_are_float32() -> None:
    shape = read_shape(ModelUse("qwen2.5-0.5b", "bfloat16", "model.path", trains=True, lora=LoraSection()))
    assert shape.trained_bytes == 4 * shape.trainable


def test_no_model_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        EstimateError, match=r"method.teacher.path: expected a folder .* llama-3.1-8b,.* found"
    ):
        read_shape(ModelUse(str(tmp_path / "nowhere"), "float32", "method.teacher.path"))


def test_a_broken_configuration_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EstimateError, match=r"model.path: .*config.json cannot be read"):
        read_shape(ModelUse(str(tmp_path), "float32", "model.path"))


@pytest.mark.parametrize("kind", EXPERTS, ids=lambda kind: kind.model_type)
@pytest.mark.parametrize("lora", [None, LoraSection(r=4)], ids=["all", "lora"])
def test_experts_count_as_in_the_built_model(tmp_path: Path, kind: Any, lora: LoraSection | None) -> None:
    kind.save_pretrained(tmp_path)
    with torch.device("meta"):
        real: Any = AutoModelForCausalLM.from_config(kind)
        dense = sum(weight.numel() for name, weight in real.named_parameters() if ".mlp.experts." not in name)
        of_one = sum(weight[0].numel() for name, weight in real.named_parameters() if ".mlp.experts." in name)
        if lora is not None:
            real = get_peft_model(real, peft_config(lora, real))
    shape = read_shape(ModelUse(str(tmp_path), "float32", "model.path", trains=True, lora=lora))
    assert shape.parameters == sum(weight.numel() for weight in real.parameters())
    assert shape.trainable == sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
    if lora is None:
        assert shape.active == dense + kind.num_experts_per_tok * of_one


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("mixtral-8x7b", 46.7, 12.9),
        ("qwen3-30b-a3b", 30.5, 3.3),
        ("olmoe-1b-7b", 6.9, 1.3),
        ("gpt-oss-20b", 20.9, 4.2),  # published as 3.6, without the 0.58 of its embedding
    ],
)
def test_known_mixtures_have_their_published_sizes(name: str, billions: float, active: float) -> None:
    shape = read_shape(ModelUse(name, "bfloat16", "model.path"))
    assert round(shape.parameters / 1e9, 1) == billions
    assert shape.active / 1e9 == pytest.approx(active, abs=0.06)


LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 512}
LLAMA |= {"num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "a mamba model is not a stack of attention layers"),
        (
            {"model_type": "mamba2", "num_heads": 8, "head_dim": 16},
            "a mamba2 model is not a stack of attention layers",
        ),
        ({"model_type": "rwkv"}, "a rwkv model is not a stack of attention layers"),
        ({"model_type": "bert"}, "a bert model is an encoder: "),
        ({"model_type": "t5"}, "a t5 model is an encoder with a decoder: "),
        ({"hidden_size": "abc"}, "config.json cannot be read: .*'hidden_size' expected int, got str"),
        ({"hidden_size": 65}, r"config.json cannot be read: .*The hidden size \(65\) is not a multiple"),
        ({"num_attention_heads": 0}, "config.json cannot be read: ZeroDivisionError: "),
        ({"num_key_value_heads": 0}, "cannot be built from its configuration: ZeroDivisionError: "),
        ({"num_hidden_layers": -3}, "num_hidden_layers: expected 1 or more, found -3"),
        ({"vocab_size": -1}, "cannot be built from its configuration: RuntimeError: "),
    ],
)
def test_what_is_no_dense_decoder_is_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recurrent = changes.get("model_type") in {"mamba", "mamba2", "rwkv"}
    values = (LLAMA | changes) if not recurrent else ({"hidden_size": 64, "vocab_size": 512} | changes)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(EstimateError, match=message) as found:
        read_shape(ModelUse(str(tmp_path), "float32", "model.path"))
    assert "\n" not in str(found.value)
