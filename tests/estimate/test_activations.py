"""Activations without memory are those that autograd keeps in a real forward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from alignkit.estimate.activations import Activations, Forward, measure
from alignkit.estimate.devices import EstimateError
from alignkit.methods.arguments import peft_config
from alignkit.methods.sections import LoraSection
from alignkit.methods.work import ModelUse
from tests.estimate.small import build_small_model

SEQUENCES, LENGTH, LAYERS = 4, 64, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_model(tmp_path_factory.mktemp("small"), layers=LAYERS, hidden=64, vocabulary=1024)


def use(folder: Path, lora: LoraSection | None = None) -> ModelUse:
    return ModelUse(str(folder), "float32", "model.path", trains=True, lora=lora)


def kept_by_autograd(folder: Path, lora: LoraSection | None) -> int:
    """Bytes of the storages that a real forward saves, weights apart, and of what it returns."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model = model if lora is None else get_peft_model(model, peft_config(lora))
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
