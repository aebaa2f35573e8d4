"""A model's own head, fused: `model(…, labels=…, fused_lm_head=True)` gives per-token log-probs, never logits.

The protocol is TRL's (`add_fused_lm_head`), so its trainers' code runs on it; the work is `linear_logprob`. It runs
inside the model's forward and there as the head module's own (`in_head`): ZeRO-3 and FSDP2 gather weights around a
module's forward and backward. A loss over two models does the same with `last_hidden` and `in_head`.
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor
from torch.distributed.tensor import DTensor

from alignkit.kernels.linear_logprob import linear_logprob

Result = TypeVar("Result")


class FusedHeadOutput(NamedTuple):
    """Per-token outputs [B, L-1] for the next-token labels; zero where the label is -100.

    A tuple, since ZeRO-3 and FSDP2 look for tensors in those, to gather weights before their backward.
    """

    log_probs: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    aux_loss: Tensor | None = None


class HeadWeights(NamedTuple):
    """A model's head, as fused heads take it."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None
    """[V]"""
    logit_scale: float
    softcap: float | None


def in_head(model: Any, function: Callable[..., Result], *hidden: Tensor) -> Result:
    """`function(head, *hidden)`, run as the forward of the head of `model`, so that its weights are whole.

    `model`: a causal LM of transformers without peft's wrapper, within its forward. `hidden` are the states that the
    weights meet; what comes back is a tensor, or a tuple or dict of tensors: through both, sharding follows the
    gradient.
    """
    module = model.get_output_embeddings()
    patched_before = module.__dict__.get("forward")

    def forward(*states: Tensor) -> Result:
        bias = _whole(getattr(module, "bias", None))
        options = head_options(model.config.get_text_config())
        return function(HeadWeights(_whole(module.weight), bias, *options), *states)

    module.forward = forward
    try:
        result: Result = module(*hidden)
        return result
    finally:
        if patched_before is None:
            del module.forward
        else:
            module.forward = patched_before


def last_hidden(model: Any, *args: Any, **inputs: Any) -> Tensor:
    """The states [B, L-1, H] from which `model`'s head predicts tokens 1 to L-1."""
    hidden: Tensor = model.base_model(*args, **{**inputs, "use_cache": False}).last_hidden_state
    return hidden[:, :-1]


def fuse_head(model: Any, *, entropy: bool = False, top1: bool = False) -> None:
    """Patch `model` (a causal LM of transformers, without peft's wrapper) so that it takes `fused_lm_head=True`.

    Without that argument the forward is what it was.
    """
    plain_forward = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]

        def log_probs(head: HeadWeights, hidden: Tensor) -> FusedHeadOutput:
            found = linear_logprob(
                hidden.reshape(-1, hidden.size(-1)),
                labels=labels.reshape(-1),
                entropy=entropy,
                top1=top1,
                **head._asdict(),
            )
            flat = (found.logps, found.entropy, found.top1)
            return FusedHeadOutput(*(None if x is None else x.view(labels.shape) for x in flat))

        return in_head(self, log_probs, last_hidden(self, *args, **kwargs))

    # `generate` and the Trainer read the signature of forward to decide which arguments a model takes
    forward.__signature__ = _signature(plain_forward)  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def _signature(function: Any) -> Any:
    import inspect

    signature = inspect.signature(function)
    return signature.replace(
        parameters=[
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            *signature.parameters.values(),
        ]
    )


def _whole(parameter: Tensor | None) -> Any:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def head_options(config: Any) -> tuple[float, float | None]:
    """(logit scale, soft cap) that the model's own forward applies to its logits."""
    softcap = getattr(config, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name)), softcap
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0, softcap
    return float(divisor if config.model_type == "hyperclovax" else 1 / divisor), softcap
