"""A model's own head, fused: `model(…, labels=…, fused_lm_head=True)` gives per-token log-probs, never logits.

The protocol is TRL's (`add_fused_lm_head`), so its trainers' code runs on it; the work is `linear_logprob`. It runs
inside the model's forward, since ZeRO-3 and FSDP gather the head's weight only there.
"""

import types
from dataclasses import dataclass
from typing import Any

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


def fuse_head(model: Any, *, entropy: bool = False, top1: bool = False) -> None:
    """Patch `model` (a causal LM of transformers, without peft's wrapper) so that it takes `fused_lm_head=True`.

    Without that argument the forward is what it was.
    """
    plain_forward = model.forward
    scale, softcap = head_options(model.config.get_text_config())

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        backbone = self.base_model(*args, **{**kwargs, "use_cache": False})
        hidden = backbone.last_hidden_state[:, :-1]
        head = self.get_output_embeddings()
        weight, bias = _whole(head.weight), _whole(head.bias)
        with maybe_gather_lm_head_ctx(weight, bias):
            result = linear_logprob(
                hidden.reshape(-1, hidden.size(-1)),
                weight,
                labels.reshape(-1),
                bias=bias,
                logit_scale=scale,
                softcap=softcap,
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
