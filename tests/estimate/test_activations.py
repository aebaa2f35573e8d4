"""Activations without memory are those that autograd keeps in a real forward."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from alignkit.adapter_sections import LoraSection
from alignkit.estimate.activations import Activations, Forward, measure
from alignkit.estimate.devices import EstimateError
from alignkit.methods.work import ModelUse
from alignkit.models.adapters import peft_config
from tests.estimate.small import EXPERTS, build_small_model

SEQUENCES, LENGTH, LAYERS = 4, 64, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_model(tmp_path_factory.mktemp("small"), layers=LAYERS, hidden=64, vocabulary=1024)


def use(folder: Path, lora: LoraSection | None = None) -> ModelUse:
    return ModelUse(str(folder), "float32", "model.path", trains=True, lora=lora)


def kept_by_autograd(folder: Path, lora: LoraSection | None) -> int:
    """Bytes of the storages that a real forward saves, weights apart, and of what it returns."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model = model if lora is None else get_peft_model(model, peft_config(lora, model))
    model.train()
    bare = model if lora is None else model.get_base_model()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(SEQUENCES, LENGTH, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, 50:] = 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = bare.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    note(states)
    return sum(saved.values())


@pytest.mark.parametrize("lora", [None, LoraSection(r=4)])
def test_what_is_kept_is_what_autograd_keeps(folder: Path, lora: LoraSection | None) -> None:
    found = measure(use(folder, lora), Forward(SEQUENCES, LENGTH, backward=True), LAYERS)
    assert found.kept == pytest.approx(kept_by_autograd(folder, lora), rel=0.05)


@pytest.mark.parametrize("kind", EXPERTS, ids=lambda kind: kind.model_type)
@pytest.mark.parametrize("lora", [None, LoraSection(r=4)], ids=["all", "lora"])
def test_a_mixture_of_experts_keeps_what_its_chosen_experts_do(
    tmp_path: Path, kind: Any, lora: LoraSection | None
) -> None:
    AutoModelForCausalLM.from_config(kind, dtype=torch.float32).save_pretrained(tmp_path)
    found = measure(use(tmp_path, lora), Forward(SEQUENCES, LENGTH, backward=True), kind.num_hidden_layers)
    assert found.kept == pytest.approx(kept_by_autograd(tmp_path, lora), rel=0.1)


def test_tokens_and_layers_count(folder: Path) -> None:
    one = measure(use(folder), Forward(4, 64, backward=True), 4)
    twice = measure(use(folder), Forward(8, 64, backward=True), 4)
    deeper = measure(use(folder), Forward(4, 64, backward=True), 8)
    assert twice.kept == pytest.approx(2 * one.kept, rel=0.01)
    assert one.kept < deeper.kept < 2 * one.kept


def test_checkpointing_keeps_less_and_computes_again(folder: Path) -> None:
    plain = measure(use(folder), Forward(4, 64, backward=True), 8)
    less = measure(use(folder), Forward(4, 64, backward=True, checkpointing=True), 8)
    assert less.kept < plain.kept / 4
    assert less.backward > plain.backward


def test_scoring_keeps_the_last_states_only(folder: Path) -> None:
    found = measure(use(folder), Forward(4, 64, backward=False), 8)
    assert found.kept <= 2 * 4 * 64 * 64 * 4
    assert found.forward > 0


def test_eager_attention_keeps_its_matrices(folder: Path) -> None:
    fused = measure(use(folder), Forward(4, 128, backward=True), 4)
    eager = measure(use(folder), Forward(4, 128, backward=True, attention="eager"), 4)
    probabilities = LAYERS * 4 * 4 * 128 * 128 * 4  # sequences, heads
    assert eager.kept > fused.kept + probabilities / 2  # fused, too, keeps something: its mask


def test_a_frozen_model_has_no_backward(folder: Path) -> None:
    with pytest.raises(EstimateError, match=r"method\.teacher\.path"):
        measure(ModelUse(str(folder), "float32", "method.teacher.path"), Forward(1, 8, backward=True), 4)


def test_autocast_keeps_half(folder: Path) -> None:
    plain = measure(use(folder), Forward(4, 64, backward=True), 4)
    mixed = measure(use(folder), Forward(4, 64, backward=True, autocast=True), 4)
    assert isinstance(mixed, Activations)
    assert mixed.kept < plain.kept


SHAPES: list[dict[str, Any]] = [
    {
        "model_type": "opt",
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 128,
        "num_attention_heads": 4,
    },
    {"model_type": "gptj", "n_embd": 64, "n_head": 4, "rotary_dim": 8},
    {"model_type": "bloom", "hidden_size": 64, "n_head": 4},
    {"model_type": "mpt", "d_model": 64, "n_heads": 4},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["model_type"])
def test_models_with_their_own_ways_are_traced(tmp_path: Path, shape: dict[str, Any]) -> None:
    """OPT takes positions from the mask; the others have no fused attention, so they keep their matrices."""
    (tmp_path / "config.json").write_text(json.dumps(shape | {"vocab_size": 512}))
    one, many = (measure(use(tmp_path), Forward(n, 128, backward=True), 2) for n in (1, 4))
    assert 3.9 * one.kept < many.kept < 5 * one.kept
    eager = measure(use(tmp_path), Forward(4, 128, backward=True, attention="eager"), 2)
    assert (eager.kept > many.kept) is (shape["model_type"] == "opt")


def test_attention_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[1] | {"vocab_size": 512}))
    with pytest.raises(EstimateError, match="GPTJForCausalLM does not support") as found:
        measure(use(tmp_path), Forward(2, 8, backward=True, attention="sdpa"), 2)
    assert "\n" not in str(found.value)


def test_code_that_fails_is_the_configurations(tmp_path: Path) -> None:
    folder = build_small_model(tmp_path, layers=1, hidden=64, vocabulary=512)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_key_value_heads": 3}))
    with pytest.raises(EstimateError, match=r"model\.path: the code of .* cannot be traced: RuntimeError: "):
        measure(use(folder), Forward(2, 8, backward=True), 1)


def test_a_changed_configuration_is_read_again(tmp_path: Path) -> None:
    folder = build_small_model(tmp_path, layers=1, hidden=64, vocabulary=512)
    file = folder / "config.json"
    before = measure(use(folder), Forward(2, 64, backward=True), 1)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 1024}))
    os.utime(file, ns=(0, 10**9))
    assert measure(use(folder), Forward(2, 64, backward=True), 1).kept > before.kept
