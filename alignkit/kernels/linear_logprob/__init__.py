"""Log-probability of a label under a linear head.

With x = softcap * tanh(scale * (h W^T + b) / softcap) / temperature and lse = logsumexp(x):

    logp = x[label] - lse            entropy = lse - sum_v p_v x_v        dlogp/dx_v = [v = label] - p_v

The upstream gradient only scales the gradient to each hidden state. So the forward computes that gradient while it
has the probabilities, and the backward multiplies it by a factor: 4 N H V flops with a frozen head (LoRA). A head
that trains costs 2 N H V more for its own gradient, and up to 2 N H V to recompute logits that were not kept.
"""

from types import ModuleType

# Not `import torch`: this package has a module `torch`, whose import would replace the name.
from torch import Tensor, compiler

from alignkit import arguments
from alignkit.kernels.backend import IMPLEMENTATIONS, Implementation, choose, engine
from alignkit.kernels.head import LogitTransform, Operands, autocast, check_shapes, trains
from alignkit.kernels.linear_logprob import liger, quack
from alignkit.kernels.linear_logprob.compiled import Call, compiled
from alignkit.kernels.linear_logprob.fused import fused
from alignkit.kernels.linear_logprob.records import LogProbs, Request, labelled_rows
from alignkit.kernels.linear_logprob.reference import materialised

__all__ = ["LogProbs", "linear_logprob"]

OTHERS: dict[Implementation, ModuleType] = {"liger": liger, "quack": quack}
"""Implementations of other projects, by the name that chooses them: `check` refuses, `fused` computes."""


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    top1: bool = False,
    confidence: bool = False,
    ignore_index: int | None = -100,
    implementation: str | None = None,
) -> LogProbs:
    """Compute log-probs in nats of `labels` [N] under softmax(`hidden` [N, H] `weight` [V, H]^T + `bias` [V]).

    Any float dtype: matmuls run in it, sums in float32. N and V may be any size; N may be 0. Rows whose label is
    `ignore_index` are removed before any work; None says that there are none, so that a GPU need not be waited for.
    The soft cap is applied after the scale and before the temperature, as models with a soft cap define it.
    Gradients flow to those of hidden, weight and bias that require them. `entropy`, `top1` and `confidence` request
    the fields of these names in LogProbs. `implementation` is one of `backend.IMPLEMENTATIONS`, "liger" or
    "quack"; None selects by device. Raises ValueError for shapes that do not match, temperature <= 0, labels outside
    [0, V), and an implementation that is unknown or cannot run.
    """
    check_shapes(hidden, weight, bias)
    arguments.positive("temperature", temperature)
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"expected labels [{hidden.size(0)}], found {tuple(labels.shape)}")
    name = choose(hidden, implementation, (*IMPLEMENTATIONS, *OTHERS))
    transform = LogitTransform(logit_scale, softcap, temperature)
    wanted = {"entropy": entropy, "top1": top1, "confidence": confidence}
    request = Request(
        tuple(output for output, asked in wanted.items() if asked),
        hidden_gradient=trains(hidden),
        head_gradient=trains(weight, bias),
    )
    if compiler.is_compiling() and name in {"torch", "triton"}:
        call = Call(labels, transform, request, ignore_index, name)
        return LogProbs(**compiled(*autocast(hidden, weight), bias, call))
    kept = labelled_rows(labels, weight, ignore_index)
    targets = kept.take(labels)
    operands = Operands(*autocast(kept.take(hidden), weight), bias, transform)
    if name == "reference":
        values = materialised(operands, targets, request)
    elif name in OTHERS:
        OTHERS[name].check(operands, request)
        values = OTHERS[name].fused(operands, targets, request)
    else:
        values = fused(operands, targets, request, engine(__name__, name))
    return LogProbs(**{output: kept.spread(value) for output, value in values.items()})
