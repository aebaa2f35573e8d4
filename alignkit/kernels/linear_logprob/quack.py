"""`linear_logprob` by quack's `scaled_exp_linear_cross_entropy_fwd`, an engine to choose by name.

It is for GPUs of compute capability 9.0. Its first matmul writes exponentials in bfloat16, scaled by row and tile,
and no logits; its second makes the hidden states' gradient from them. That is 4 N H V flops with a frozen head, as
ours, without a row kernel between the two. The package is quack-kernels, which no extra of alignkit installs. It was
not run yet, for lack of such a GPU.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.errors import AlignkitError
from alignkit.kernels.head import Operands
from alignkit.kernels.linear_logprob.records import Request

CHUNK = 4096
"""Tokens per chunk, quack's own default. A chunk's exponentials take 2 CHUNK V bytes."""


class Quack(NamedTuple):
    """The two functions of `quack.linear_cross_entropy` that are used, as version 0.6 has them."""

    supported: Callable[..., bool]
    """(hidden, weight, chunk, reduction) -> whether the other one can run."""
    forward: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
    """(hidden, weight, labels, chunk, need_dx=, need_dw=) -> each row's loss, and its gradients, padded with rows."""


def load() -> Quack:
    """Import quack. Raises AlignkitError if it is not installed, or cannot be imported."""
    if importlib.util.find_spec("quack") is None:
        raise AlignkitError(
            "implementation quack needs the package quack-kernels, which is not installed: "
            "pip install quack-kernels"
        )
    try:
        from quack import linear_cross_entropy as theirs  # an extra: comparisons, on a GPU alone

        return Quack(theirs.scaled_exp_lce_supported, theirs.scaled_exp_linear_cross_entropy_fwd)
    except (ImportError, AttributeError) as error:
        raise AlignkitError(
            f"implementation quack cannot use the installed quack-kernels, expected version 0.6: {error}"
        ) from error


def check(operands: Operands, request: Request) -> None:
    """Raise ValueError for what quack's op does not have, AlignkitError if it is not installed."""
    hidden, weight, bias, transform = operands
    theirs = load()
    lacking = {
        "a bias": bias is not None,
        "a soft cap": transform.softcap is not None,
        f"a logit scale over temperature of {transform.factor:g}": transform.factor != 1.0,
        "the gradient of a head that trains": request.head_gradient,
        **dict.fromkeys(request.outputs, True),
    }
    asked = [name for name, wanted in lacking.items() if wanted]
    if asked:
        raise ValueError(
            "implementation quack has log-probs of a frozen head without bias and soft cap alone: "
            f"it cannot compute {', '.join(asked)}. Leave the choice to the device, or choose torch or triton"
        )
    if not theirs.supported(hidden.contiguous(), weight.contiguous(), CHUNK, "sum"):
        raise ValueError(
            "implementation quack needs a GPU of compute capability 9.0, bfloat16, V divisible by 128 and H by 8: "
            f"found {hidden.dtype} and {weight.dtype} on {hidden.device.type}, V {weight.size(0)}, H {weight.size(1)}"
        )


def fused(operands: Operands, labels: Tensor, request: Request) -> dict[str, Tensor]:
    """Compute the log-probs, [N]. No label may be ignored."""
    hidden, weight = operands.hidden, operands.weight
    if not len(hidden):
        return {"logps": hidden.sum(dim=1).float()}
    return {"logps": _LogProbs.apply(hidden, weight, labels, request)}


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, request: Request) -> Tensor:
        wanted = request.hidden_gradient
        losses, gradient, _ = load().forward(
            hidden.contiguous(), weight.contiguous(), labels, CHUNK, need_dx=wanted, need_dw=False
        )
        ctx.save_for_backward(None if gradient is None else gradient[: len(hidden)])
        return -losses[: len(hidden)]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * -upstream[:, None]).to(gradient.dtype), None, None, None
