"""A model's own head, fused: `model(…, labels=…, fused_lm_head=True)` gives per-token log-probs, never logits.

The protocol is TRL's (`add_fused_lm_head`), so its trainers' code runs on it; the work is `linear_logprob`. It runs
inside the model's forward, since ZeRO-3 and FSDP gather the head's weight only there. A loss over two models takes
what it needs, under the same condition, with `last_hidden` and `head_of`.
"""

import types
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.tensor import DTensor
from trl.trainer.utils import maybe_gather_lm_head_ctx

from alignkit.kernels.linear_logprob import linear_logprob


@dataclass
class FusedHeadOutput:
    """Per-token outputs [B, L-1] for the next-token labels; zero where the label is -100."""

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

    def gathered(self) -> AbstractContextManager[Any]:
        """Where the weights may be read; under ZeRO-3 they are whole only in here."""
        context: AbstractContextManager[Any] = maybe_gather_lm_head_ctx(self.weight, self.bias)
        return context


def head_of(model: Any) -> HeadWeights:
    """The head of `model`, a causal LM of transformers without peft's wrapper."""
    head = model.get_output_embeddings()
    return HeadWeights(
        _whole(head.weight),
        _whole(getattr(head, "bias", None)),
        *head_options(model.config.get_text_config()),
    )


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
        hidden = last_hidden(self, *args, **kwargs)
        head = head_of(self)
        with head.gathered():
            result = linear_logprob(
                hidden.reshape(-1, hidden.size(-1)),
                head.weight,
                labels.reshape(-1),
                bias=head.bias,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
                entropy=entropy,
                top1=top1,
            )
        shaped = [
            None if x is None else x.view(labels.shape) for x in (result.logps, result.entropy, result.top1)
        ]
        return FusedHeadOutput(*shaped)

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
