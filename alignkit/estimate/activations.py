"""What a forward and a backward keep, by running the model's own code on tensors without memory.

One and two layers are run; a layer more costs the difference. So adapters, checkpointing, attention, autocast and
the architecture count as they are, and nothing has to be known of them here.
"""

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from alignkit.estimate.devices import EstimateError
from alignkit.estimate.live_bytes import LiveBytes
from alignkit.estimate.shapes import build, changed, configuration, refusing, with_layers
from alignkit.estimate.upstream import FakeTensorMode, replace_tensors, set_attention, supports_sdpa
from alignkit.methods.work import ModelUse

TRACED_ATTENTION = "sdpa"
"""Stands for kernels that are not installed here: all of them keep queries, keys, values and the output."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes beside weights and the gradients of weights; the last hidden states count, heads do not."""

    kept: int
    """From the forward to the backward."""
    forward: int
    """At the most in the forward, beside what is kept."""
    backward: int
    """At the most in the backward of one layer, beside what was kept."""


@dataclass(frozen=True, slots=True)
class Forward:
    """How a model is run."""

    sequences: int
    length: int
    backward: bool
    checkpointing: bool = False
    autocast: bool = False
    attention: str | None = None


def measure(use: ModelUse, forward: Forward, layers: int) -> Activations:
    """Of a model with so many layers."""
    if not use.trains and forward.backward:
        raise EstimateError(f"{use.field}: a frozen model has no backward")
    with refusing(f"{use.field}: the code of {use.path} cannot be traced"):
        one, two = (_run(use, changed(use), forward, depth) for depth in (1, min(2, layers)))
    deeper = layers - 1
    return Activations(
        kept=one.kept + deeper * (two.kept - one.kept),
        forward=one.forward,
        backward=one.backward,
    )


@lru_cache(maxsize=256)
def _run(use: ModelUse, _changed: int, forward: Forward, depth: int) -> Activations:
    config, _ = configuration(use)
    config = with_layers(config, depth)
    attention = _attention(config, forward.attention)
    set_attention(config, attention)
    model = build(config, use)
    bare = _prepare(model, use, forward)
    with FakeTensorMode() as mode:
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
    """As the trainers set it up. Returns it without peft's wrapper."""
    bare = model.get_base_model() if use.trains and use.lora else model
    model.train(forward.backward)
    for stack in (module for module in model.modules() if hasattr(module, "layerdrop")):
        stack.training = False  # it would look at a number that it drew; here no layer is left out
    if forward.backward and forward.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if forward.backward and (forward.checkpointing or use.lora is None):
        # the embedding's gradient is counted as a gradient; what comes before it is not a layer's
        bare.get_input_embeddings().weight.requires_grad_(False)
        bare.enable_input_require_grads()
    return bare


def _padding(base: Any, forward: Forward, attention: str) -> dict[str, Any]:
    """What says which tokens are padding; of one sequence none is, and then nothing says so."""
    if forward.sequences == 1:
        return {}
    if attention == "eager":
        return {"attention_mask": torch.ones(forward.sequences, forward.length, dtype=torch.long)}
    # Of a mask a token, sdpa's callers ask whether it hides anything, which a tensor without memory cannot say.
    mask = torch.ones(forward.sequences, 1, forward.length, forward.length, dtype=torch.bool)
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return {"attention_mask": mask}
    # Given, since some models take positions from the mask.
    positions = torch.arange(forward.length).unsqueeze(0)
    return {"attention_mask": mask, "position_ids": positions}


def _attention(config: Any, asked: str | None) -> str:
    """Where none is asked for, a model without TRACED_ATTENTION has its own, as when it is loaded."""
    if asked == "eager":
        return asked
    if asked is None and not supports_sdpa(config):  # built with it, the model would refuse
        return "eager"
    return TRACED_ATTENTION


def _without_memory(model: Any) -> None:
    """Put tensors of the same shapes, on a device that exists but without memory, in the place of meta's."""

    def empty(tensor: Any) -> Any:
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    def weight(old: Any) -> Any:
        return torch.nn.Parameter(empty(old), requires_grad=old.requires_grad)

    replace_tensors(model, weight, empty)
