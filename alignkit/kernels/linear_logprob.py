"""Log-probability of a label under a linear head.

With x = softcap * tanh(scale * (h W^T + b) / softcap) / temperature and lse = logsumexp(x):

    logp = x[label] - lse            entropy = lse - sum_v p_v x_v            dlogp/dx_v = [v = label] - p_v

The gradient to each hidden state needs nothing from above but a factor, so the forward makes it while the
probabilities are at hand and the backward only scales it: 4 N H V flops with a frozen head (LoRA). A head that trains
costs 2 N H V more for its own gradient, and up to 2 N H V for the logits that the forward could not keep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.backend import Implementation, choose
from alignkit.kernels.heads import Head, autocast, check_head, gathered, trains


@dataclass(frozen=True, slots=True)
class LogProbs:
    """What `linear_logprob` returns; float32, zero (False) where the label is ignored."""

    logps: Tensor
    """[N], differentiable."""
    entropy: Tensor | None
    """[N] nats, detached; None unless asked for."""
    top1: Tensor | None
    """[N] bool, whether the label is the first of the largest logits; None unless asked for."""


class Wanted(NamedTuple):
    """What a sweep over the vocabulary is to make besides the log-probs."""

    entropy: bool
    top1: bool
    direction: bool
    """The hidden states' gradient."""
    head_trains: bool
    """Whether `head_gradient` will be called, for which the sweep may keep what it likes."""


class Found(NamedTuple):
    """What `Engine.head_gradient` is told of the sweep before it."""

    picked: Tensor
    """[N] float32, the labels' logits."""
    lse: Tensor
    """[N] float32."""


@dataclass(slots=True)
class Swept:
    """What one sweep over the vocabulary makes."""

    picked: Tensor
    """[N] float32, the labels' logits."""
    lse: Tensor
    """[N] float32."""
    logps: Tensor
    """[N] float32; nearer to the truth than `picked - lse` where logits are large."""
    entropy: Tensor | None
    """[N] float32."""
    top1: Tensor | None
    """[N] bool."""
    direction: Tensor | None
    """[N, H] d logp / d hidden."""
    kept: Any = None
    """For the engine's own `head_gradient`."""


class Engine(Protocol):
    """Two passes over the vocabulary; each implementation but the reference is a module with these functions."""

    def sweep(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, head: Head, wanted: Wanted
    ) -> Swept:
        """Log-probs of `labels` and whatever `wanted` names."""

    def head_gradient(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        head: Head,
        found: Found,
        upstream: Tensor,
        kept: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Float32 gradients to `weight` and, where there is one, `bias`, given `upstream` [N] = d loss / d logps."""


Outputs = tuple[Tensor, Tensor | None, Tensor | None]
"""logps, entropy, top1 of rows none of which is ignored."""


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
    ignore_index: int = -100,
    implementation: str | None = None,
) -> LogProbs:
    """Log-probs in nats of `labels` [N] under softmax(`hidden` [N, H] `weight` [V, H]^T + `bias` [V]).

    Any float dtype (products run in it, sums in float32); N and V need divide by nothing; N may be 0. Rows whose
    label is `ignore_index` are removed before any work. The soft cap is applied after the scale and before the
    temperature, as the models that cap define it. Gradients to hidden, weight and bias, as far as they require them.
    `implementation` is one of `backend.IMPLEMENTATIONS`, None for the device's.
    Raises ValueError for shapes that do not fit, temperature <= 0, labels outside [0, V), and an implementation that
    is unknown or cannot run here.
    """
    check_head(hidden, weight, temperature)
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"expected labels [{hidden.size(0)}], found {tuple(labels.shape)}")
    compute = _IMPLEMENTATIONS[choose(hidden, implementation)]
    keep = labels != ignore_index
    everything = bool(keep.all())
    rows = hidden if everything else hidden[keep]
    targets = labels if everything else labels[keep]
    _check_labels(targets, weight.size(0))
    rows, matrix = autocast(rows, weight)
    head = Head(logit_scale, softcap, temperature)
    found = compute(rows, matrix, targets, bias, head, entropy, top1)
    if everything:
        return LogProbs(*found)

    def scatter(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.new_zeros(labels.shape).masked_scatter(keep, values)

    logps, entropies, hits = found
    return LogProbs(
        logps.new_zeros(labels.shape).masked_scatter(keep, logps), scatter(entropies), scatter(hits)
    )


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    if labels.numel() == 0:
        return
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0 or high >= vocabulary:
        raise ValueError(f"labels must be in [0, {vocabulary}) or ignored, found {low if low < 0 else high}")


def _reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    head: Head,
    entropy: bool,  # noqa: FBT001
    top1: bool,  # noqa: FBT001
) -> Outputs:
    """All logits at once, gradients by autograd: what the others are measured against."""
    x = (hidden @ weight.T).float()
    x = (x if bias is None else x + bias) * head.scale
    if head.softcap is not None:
        x = head.softcap * torch.tanh(x / head.softcap)
    logp = (x / head.temperature).log_softmax(dim=-1)
    entropies = torch.special.entr(logp.detach().exp()).sum(dim=-1) if entropy else None
    hits = x.argmax(dim=-1) == labels if top1 else None
    return logp.gather(1, labels[:, None]).squeeze(1), entropies, hits


def _torch(*arguments: Any) -> Outputs:
    from alignkit.kernels.torch import linear_logprob as engine

    return _fused(engine, *arguments)


def _triton(*arguments: Any) -> Outputs:
    from alignkit.kernels.triton import linear_logprob as engine

    return _fused(engine, *arguments)


_IMPLEMENTATIONS: dict[Implementation, Callable[..., Outputs]] = {
    "triton": _triton,
    "torch": _torch,
    "reference": _reference,
}


def _fused(
    engine: Engine,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    head: Head,
    entropy: bool,  # noqa: FBT001
    top1: bool,  # noqa: FBT001
) -> Outputs:
    wanted = Wanted(entropy, top1, direction=trains(hidden), head_trains=trains(weight, bias))
    result: Outputs = _LinearLogProb.apply(hidden, weight, labels, bias, head, wanted, engine)
    return result


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        head: Head,
        wanted: Wanted,
        engine: Engine,
    ) -> Outputs:
        found = engine.sweep(hidden, weight, labels, bias, head, wanted)
        for_head = (
            (hidden, weight, labels, bias, found.picked, found.lse) if wanted.head_trains else (None,) * 6
        )
        ctx.save_for_backward(found.direction, *for_head)
        ctx.head, ctx.wanted, ctx.engine, ctx.kept = head, wanted, engine, found.kept
        ctx.mark_non_differentiable(*(x for x in (found.entropy, found.top1) if x is not None))
        return found.logps, found.entropy, found.top1

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
        direction, hidden, weight, labels, bias, *found = ctx.saved_tensors
        grad_hidden = grad_weight = grad_bias = None
        if direction is not None:
            grad_hidden = (direction * upstream[:, None]).to(direction.dtype)
        if ctx.wanted.head_trains:
            with gathered(weight, bias):
                grad_weight, grad_bias = ctx.engine.head_gradient(
                    hidden, weight, labels, bias, ctx.head, Found(*found), upstream, ctx.kept
                )
            grad_weight = grad_weight.to(weight.dtype)
            grad_bias = grad_bias if bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, None, grad_bias, None, None, None
