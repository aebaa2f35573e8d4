"""Options that the machine or the launcher cannot support are refused by field, before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.errors import RecipeError
from alignkit.recipe import Recipe
from alignkit.run import environment_checks, layer_checks


def recipe(**sections: Any) -> Recipe:
    return Recipe.parse(
        {
            "model": {"path": "model", **sections.pop("model", {})},
            "data": {"train": "train.jsonl"},
            "method": {"type": "f_dpo"},
            "output_dir": "out",
            **sections,
        }
    )


def refused(**sections: Any) -> str:
    with pytest.raises(RecipeError) as found:
        environment_checks.require(recipe(**sections))
    return str(found.value)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, bf16: bool = True) -> None:
    """A machine with that many GPUs, on which no torch kernel runs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    installed = environment_checks._installed
    monkeypatch.setattr(
        environment_checks, "_installed", lambda name: name not in packages and installed(name)
    )


def sharded(monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))


def test_what_needs_whole_weights_is_refused_where_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    steps = [{"type": "interpolate", "amount": 0.5}]
    environment_checks.require(recipe(after=steps, training={"gradient": "orthogonal"}))
    sharded(monkeypatch, 2)
    environment_checks.require(recipe(after=steps))
    assert (
        "training.gradient: orthogonal needs whole matrices, which the flat shards of ZeRO-2 are not"
        in refused(training={"gradient": "orthogonal"})
    )
    sharded(monkeypatch, 3)
    assert "after: no process holds a weight whole under ZeRO-3" in refused(after=steps)


def test_what_every_machine_has_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    environment_checks.require(recipe())
    environment_checks.require(
        recipe(model={"attn_implementation": "sdpa"}, training={"mixed_precision": "bf16"})
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # on a CPU there is room for two
    environment_checks.require(recipe())


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    environment_checks.require(recipe())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert refused() == "expected a GPU for each of the 8 processes on this machine, found 2"


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert refused(training={"mixed_precision": "fp16"}).startswith(
        "training.mixed_precision: fp16 needs a GPU"
    )
    gpus(monkeypatch, 1, bf16=False)
    environment_checks.require(recipe(training={"mixed_precision": "fp16"}))
    assert "Tesla T4 does not support bf16" in refused(training={"mixed_precision": "bf16"})


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_attention_that_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpus(monkeypatch, 0)
    message = refused(model={"attn_implementation": name})
    assert message.startswith(f"model.attn_implementation: {name} needs a GPU, but this machine has none")


def test_attention_whose_package_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    without(monkeypatch, "flash_attn")
    assert "needs the package flash_attn" in refused(model={"attn_implementation": "flash_attention_2"})
    environment_checks.require(recipe(model={"attn_implementation": "flex_attention"}))
    with pytest.raises(RecipeError, match=r"model\.attn_implementation: expected 'auto' or 'eager', 'sdpa'"):
        recipe(model={"attn_implementation": "someone/flash-attn"})


def test_kernels_of_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus(monkeypatch, 0)
    liger = {"path": str(tmp_path), "layer_kernels": "liger"}
    assert refused(model=liger).startswith("model.layer_kernels: liger needs a GPU, where Triton runs")
    gpus(monkeypatch, 1)
    monkeypatch.setattr(layer_checks, "_installed", lambda _: False)
    assert refused(model=liger) == (
        "model.layer_kernels: liger needs the package liger_kernel, which is not installed: "
        "pip install 'alignkit[liger]'"
    )
    monkeypatch.setattr(layer_checks, "_installed", lambda _: True)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    environment_checks.require(recipe(model=liger))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model.layer_kernels: liger has no kernels for gpt2: expected one of" in refused(model=liger)
    with pytest.raises(
        RecipeError, match=r"layer_kernels: expected 'liger', found 'ligr'; did you mean liger\?"
    ):
        recipe(model={"layer_kernels": "ligr"})


def test_compiled_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    compiled = {"torch_compile": True}
    monkeypatch.setattr(layer_checks, "compiler_missing", lambda *, gpu: "gcc" if gpu else None)
    environment_checks.require(recipe(training=compiled))
    sharded(monkeypatch, 2)
    environment_checks.require(recipe(training=compiled))
    sharded(monkeypatch, 3)
    assert refused(training=compiled).startswith("training.torch_compile: compiled layers do not wait for")
    gpus(monkeypatch, 1)
    assert "training.torch_compile: it needs a compiler, gcc, which is not installed" in refused(
        training=compiled
    )
    with pytest.raises(RecipeError, match=r"torch_compile: expected false with model\.layer_kernels, which"):
        recipe(training=compiled, model={"layer_kernels": "liger"})
    with pytest.raises(RecipeError, match=r"torch_compile: expected false with lora\.nested, which"):
        recipe(training=compiled, lora={"nested": {}})


def test_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "bitsandbytes")
    for name in ("adamw_8bit", "paged_lion_32bit", "rmsprop_bnb"):
        assert f"{name} needs the package bitsandbytes" in refused(training={"optimizer": name})
    assert "training.optimizer: expected one of adamw_torch, " in refused(training={"optimizer": "adamw"})
    environment_checks.require(recipe(training={"optimizer": "adafactor"}))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_that_cannot_be_sharded(monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """adafactor factors the moments of a whole matrix; of a flat part of one it would make something else."""
    sharded(monkeypatch, stage)
    for name in environment_checks.ELEMENTWISE:
        environment_checks.require(recipe(training={"optimizer": name}))
    message = refused(training={"optimizer": "adafactor"})
    assert message.startswith(
        f"training.optimizer: adafactor cannot be sharded under ZeRO-{stage}; expected one of"
    )


def test_quantised_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "bitsandbytes")
    assert refused(model={"quantization": "nf4"}) == (
        "model.quantization: nf4 needs the package bitsandbytes, which is not installed: "
        "pip install 'alignkit[quantized]'"
    )
    monkeypatch.setattr(environment_checks, "_installed", lambda _: True)
    environment_checks.require(recipe(model={"quantization": "nf4"}))
    sharded(monkeypatch, 3)
    assert "expected ddp, zero1 or zero2 with quantised weights, found ZeRO-3" in refused(
        model={"quantization": "nf4"}
    )
    with pytest.raises(
        RecipeError, match=r"model\.quantization: nf4 weights are frozen, so lora is required; found null"
    ):
        recipe(model={"quantization": "nf4"}, lora=None)


def test_terms_of_the_weights_need_them_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    anchored = {"terms": [{"type": "anchor", "diagonal": "one"}]}
    environment_checks.require(recipe(**anchored))
    sharded(monkeypatch, 3)
    assert refused(**anchored) == (
        "terms.0.type: anchor needs whole weights in each process: expected ddp, zero1 or zero2, found ZeRO-3"
    )
    sharded(monkeypatch, 2)
    environment_checks.require(recipe(**anchored))
