"""What a forward and a backward keep, by running the model's own code on tensors without memory.

One and two layers are run; a layer more costs the difference. So adapters, checkpointing, attention, autocast and
the architecture count as they are, and nothing has to be known of them here.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from alignkit.estimate.devices import EstimateError
from alignkit.estimate.live_bytes import LiveBytes
from alignkit.estimate.shapes import build, configuration, with_layers
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
    one, two = (_run(use, forward, depth) for depth in (1, min(2, layers)))
    deeper = layers - 1
    return Activations(
        kept=one.kept + deeper * (two.kept - one.kept),
        forward=one.forward,
        backward=one.backward,
    )


@lru_cache(maxsize=256)
def _run(use: ModelUse, forward: Forward, depth: int) -> Activations:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    config, _ = configuration(use)
    config = with_layers(config, depth)
    config._attn_implementation = _attention(forward.attention)  # noqa: SLF001 - where transformers keeps it
    model = build(config, use)
    bare = _prepare(model, use, forward)
    with FakeTensorMode() as mode:
        _without_memory(model)
        ids = torch.zeros(forward.sequences, forward.length, dtype=torch.long)
        mask = torch.ones(forward.sequences, 1, forward.length, forward.length, dtype=torch.bool)
        # one sequence has no padding, and then there is no mask
        inputs = {
            "input_ids": ids,
            "attention_mask": mask if forward.sequences > 1 else None,
            "use_cache": False,
        }
        with LiveBytes() as live, torch.set_grad_enabled(forward.backward):
            live.ignore([*model.parameters(), *model.buffers(), ids, mask])
            with torch.autocast("cpu", torch.bfloat16, enabled=forward.autocast):
                states = bare.base_model(**inputs).last_hidden_state
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
    if forward.backward and forward.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if forward.backward and (forward.checkpointing or use.lora is None):
        # the embedding's gradient is counted as a gradient; what comes before it is not a layer's
        bare.get_input_embeddings().weight.requires_grad_(False)
        bare.enable_input_require_grads()
    return bare


def _attention(asked: str | None) -> str:
    return "eager" if asked == "eager" else TRACED_ATTENTION


def _without_memory(model: Any) -> None:
    """Put tensors of the same shapes, on a device that exists but without memory, in the place of meta's."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():  # noqa: SLF001 - shared ones must stay shared
            if weight is not None:
                if id(weight) not in made:
                    fake = torch.empty(weight.shape, dtype=weight.dtype)
                    made[id(weight)] = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
                module._parameters[name] = made[id(weight)]  # noqa: SLF001
        for name, buffer in module._buffers.items():  # noqa: SLF001
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)  # noqa: SLF001
