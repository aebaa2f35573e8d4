"""Liger's kernels and compiled layers: what they replace, what they leave, and that they compute the same."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from alignkit.checks import require_same_layers
from alignkit.errors import ModelError
from alignkit.models import layers
from tests.tree import ROOT

IDS = torch.tensor([[5, 9, 3, 7, 11, 4], [5, 9, 3, 7, 11, 8]])
needs_liger = pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel"
)


def llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": 31,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()


@needs_liger
def test_kernels_replace_forwards_of_this_model_s_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        modeling_llama, layers.ROTARY, vars(modeling_llama)[layers.ROTARY]
    )  # put back afterwards
    model, classes = llama(), (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP)
    names = list(model.state_dict())
    with torch.no_grad():
        expected = model(IDS).logits
    layers.use_liger(model)
    assert layers.has_liger(model)
    assert list(model.state_dict()) == names
    assert "forward" not in vars(model)
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP) == classes
    other = llama()
    assert not layers.has_liger(other)
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, expected)  # its rotary positions are on a CPU, without Triton
        with layers.plain_layers(model):
            assert not layers.has_liger(model)
            assert torch.equal(model(IDS).logits, expected)
    assert layers.has_liger(model)


@needs_liger
def test_a_second_model_of_the_architecture_shares_the_rotary_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = vars(modeling_llama)[layers.ROTARY]
    monkeypatch.setattr(modeling_llama, layers.ROTARY, own)  # put back afterwards
    layers.use_liger(llama())
    layers.use_liger(llama())
    assert vars(modeling_llama)[layers.ROTARY].plain is own


@pytest.mark.slow
@needs_liger
def test_every_supported_architecture_agrees_with_its_own_layers() -> None:
    """Under Triton's interpreter, which replaces the compiler for a whole process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.liger_layers"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(layers.ARCHITECTURES)
    for name, measured in found.items():
        assert measured["replaced"] >= 5, name  # two norms a layer, and the last one
        assert measured["logits"] <= 1e-5, name
        assert measured["gradients"] <= 1e-5, name
        assert measured["plain"] == 0, name


def test_a_layer_with_another_function_is_refused() -> None:
    model = llama()
    require_same_layers(model, layers.plain_layers)
    norm = model.model.layers[1].input_layernorm
    norm.forward = wrong = lambda states: 2 * type(norm).forward(norm, states)
    wrong.__module__ = "liger_kernel.wrong"
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: its logits with faster layers .* differ from"):
        require_same_layers(model, layers.plain_layers)


def test_a_configuration_that_liger_does_not_know_is_refused() -> None:
    assert not list(layers.kernel_refusals({"model_type": "llama", "hidden_act": "silu"}))
    assert not list(
        layers.kernel_refusals({"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"})
    )
    (reason,) = layers.kernel_refusals({"model_type": "llama", "hidden_act": "gelu"})
    assert reason == "liger's gate has the activation silu, but the model has gelu"
    (reason,) = layers.kernel_refusals({"model_type": "qwen-2"})
    assert reason.startswith("liger has no kernels for qwen-2: expected one of gemma, ")
    assert reason.endswith("; did you mean qwen2?")


def test_the_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    assert layers.compiler_missing(gpu=False) == "g++ or clang++"
    assert layers.compiler_missing(gpu=True) == "gcc or clang or cc"
    monkeypatch.setenv("CXX", str(tmp_path / "own"))
    assert layers.compiler_missing(gpu=False) == str(tmp_path / "own")
    (tmp_path / "own").touch(mode=0o755)
    assert layers.compiler_missing(gpu=False) is None


def test_layers_are_compiled_once_and_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "BACKEND", "eager")
    model = llama()
    names, blocks = list(model.state_dict()), list(model.model.layers)
    assert layers.layers_of(model) is None
    assert [layers.compile_layers(model), layers.compile_layers(model)] == [2, 0]
    assert layers.layers_of(model) == "compiled"
    assert (list(model.state_dict()), list(model.model.layers)) == (names, blocks)
    copied = copy.deepcopy(model.model)
    assert layers.layers_of(copied) is None


def test_generation_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("compiled")

    monkeypatch.setattr(layers, "BACKEND", never)
    model, options = (
        llama(),
        {"do_sample": False, "max_new_tokens": 3, "attention_mask": torch.ones_like(IDS)},
    )
    expected = model.generate(input_ids=IDS, **options)
    layers.compile_layers(model)
    assert torch.equal(model.generate(input_ids=IDS, **options), expected)
    with pytest.raises(Exception, match="compiled"):
        model(IDS)


def test_a_model_without_decoder_layers_cannot_be_compiled() -> None:
    with pytest.raises(ModelError, match=r"training\.torch_compile: found no decoder layers"):
        layers.compile_layers(torch.nn.Linear(2, 2))
