"""Measures the memory that a forward and a backward pass keep, by running the model's code on fake tensors.

One and two layers are run; each further layer costs the difference. Adapters, checkpointing, attention, autocast
and the architecture are therefore included without any knowledge of them here.
"""

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from alignkit.estimate.devices import EstimateError
from alignkit.estimate.live_bytes import LiveBytes
from alignkit.estimate.shapes import build, config_file, configuration, refusing, with_layers
from alignkit.estimate.upstream import (
    FakeTensorMode,
    even_experts,
    replace_tensors,
    set_attention,
    supports_sdpa,
)
from alignkit.methods.work import ModelUse
from alignkit.models.stored_weights import changed

TRACED_ATTENTION = "sdpa"
"""Stands in for kernels that are not installed here: all of them keep queries, keys, values and the output."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes besides weights and their gradients; the last hidden states are included, the heads are not."""

    kept: int
    """Kept from the forward pass for the backward pass."""
    forward: int
    """Peak in the forward pass, in addition to `kept`."""
    backward: int
    """Peak in the backward pass of one layer, in addition to `kept`."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The options of a pass through a model."""

    sequences: int
    length: int
    backward: bool
    checkpointing: bool = False
    autocast: bool = False
    attention: str | None = None


def measure(use: ModelUse, forward: Forward, layers: int) -> Activations:
    """The activations of a model with that many layers."""
    if not use.trains and forward.backward:
        raise EstimateError(f"{use.field}: a frozen model has no backward")
    with refusing(f"{use.field}: the code of {use.path} cannot be traced"):
        one, two = (_run(use, changed(config_file(use)), forward, depth) for depth in (1, min(2, layers)))
    deeper = layers - 1
    return Activations(
        kept=one.kept + deeper * (two.kept - one.kept),
        forward=one.forward,
        backward=one.backward,
    )


@lru_cache(maxsize=256)
def _run(use: ModelUse, _changed: tuple[str, int, int], forward: Forward, depth: int) -> Activations:
    config, _ = configuration(use)
    config = with_layers(config, depth)
    attention = _attention(config, forward.attention)
    set_attention(config, attention)
    model = build(config, use)
    bare = _prepare(model, use, forward)
    with FakeTensorMode() as mode, even_experts():
        _without_memory(model)
        ids = torch.zeros(forward.sequences, forward.length, dtype=torch.long)
        padding = _padding(bare.base_model, forward, attention)
        with LiveBytes() as live, torch.set_grad_enabled(forward.backward):
            live.ignore([*model.parameters(), *model.buffers(), ids, *padding.values()])
            with torch.autocast("cpu", torch.bfloat16, enabled=forward.autocast):
                states = bare.base_model(input_ids=ids, use_cache=False, **padding).last_hidden_state
            kept, peak = live.now, live.peak
            if not forward.backward:
                return Activations(kept, peak - kept, 0)
            live.restart()
            states.backward(torch.empty_like(states))
            return Activations(kept, peak - kept, max(0, live.peak - kept))
    raise AssertionError(mode)


def _prepare(model: Any, use: ModelUse, forward: Forward) -> Any:
    """Set up the model like the trainers do; returns it without peft's wrapper."""
    bare = model.get_base_model() if use.trains and use.lora else model
    model.train(forward.backward)
    for stack in (module for module in model.modules() if hasattr(module, "layerdrop")):
        stack.training = (
            False  # layerdrop reads a random number, which fake tensors lack; no layer is dropped here
        )
    if forward.backward and forward.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if forward.backward and (forward.checkpointing or use.lora is None):
        # the embedding's gradient counts as a gradient, not as part of a layer
        bare.get_input_embeddings().weight.requires_grad_(False)
        bare.enable_input_require_grads()
    return bare


def _padding(base: Any, forward: Forward, attention: str) -> dict[str, Any]:
    """The arguments that mark padding tokens; none for a single sequence, which has no padding."""
    if forward.sequences == 1:
        return {}
    if attention == "eager":
        return {"attention_mask": torch.ones(forward.sequences, forward.length, dtype=torch.long)}
    # With a mask per token, sdpa's callers read its values, which fake tensors do not have.
    mask = torch.ones(forward.sequences, 1, forward.length, forward.length, dtype=torch.bool)
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return {"attention_mask": mask}
    # Given explicitly, because some models derive positions from the mask.
    positions = torch.arange(forward.length).unsqueeze(0)
    return {"attention_mask": mask, "position_ids": positions}


def _attention(config: Any, asked: str | None) -> str:
    """The attention implementation; by default TRACED_ATTENTION, or eager for models that do not support it."""
    if asked == "eager":
        return asked
    if asked is None and not supports_sdpa(config):  # the model would refuse to be built with sdpa
        return "eager"
    return TRACED_ATTENTION


def _without_memory(model: Any) -> None:
    """Replace meta tensors by fake tensors of the same shapes on a real device."""

    def empty(tensor: Any) -> Any:
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    def weight(old: Any) -> Any:
        return torch.nn.Parameter(empty(old), requires_grad=old.requires_grad)

    replace_tensors(model, weight, empty)
