"""Log-probability of a label under a linear head, in token chunks.

With x = softcap * tanh(scale * (h W^T + b) / softcap) / temperature and lse = logsumexp(x):

    logp = x[label] - lse            entropy = lse - sum_v p_v x_v            dlogp/dx_v = [v = label] - p_v

Two paths. Head frozen (LoRA): the gradient to each hidden state is made in the forward, while a chunk's
probabilities are at hand, and only scaled in the backward: 4 N H V flops in all. Head trained: the backward
recomputes each chunk, 8 N H V flops, and adds up weight and bias gradients in float32.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 24 * 2**20
"""Size of one chunk's float32 logits: small enough to stay out of the way, large enough for a fast product."""


@dataclass(frozen=True, slots=True)
class LogProbs:
    """What `linear_logprob` returns; float32, zero (False) where the label is ignored."""

    logps: Tensor
    """[N], differentiable."""
    entropy: Tensor | None
    """[N] nats, detached; None unless asked for."""
    top1: Tensor | None
    """[N] bool, whether the label has the largest logit; None unless asked for."""


class _Head(NamedTuple):
    scale: float
    softcap: float | None
    want_entropy: bool
    want_top1: bool


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
) -> LogProbs:
    """Log-probs in nats of `labels` [N] under softmax(`hidden` [N, H] `weight` [V, H]^T + `bias` [V]).

    Any float dtype (products run in it, sums in float32); N and V need divide by nothing; N may be 0. Rows whose
    label is `ignore_index` are removed before any work. The soft cap is applied after the scale and before the
    temperature, as the models that cap define it. Gradients to hidden, weight and bias, as far as they require them.
    Raises ValueError for shapes that do not fit and temperature <= 0.
    """
    _check(hidden, weight, labels, temperature)
    head = _Head(logit_scale, softcap, entropy, top1)
    keep = labels != ignore_index
    everything = bool(keep.all())
    rows = hidden if everything else hidden[keep]
    targets = labels if everything else labels[keep]
    rows, matrix = _autocast(rows, weight)
    logps, entropies, hits = _LinearLogProb.apply(rows, matrix, targets, bias, head, temperature)
    if everything:
        return LogProbs(logps, entropies if entropy else None, hits if top1 else None)

    def scatter(values: Tensor) -> Tensor:
        return values.new_zeros(labels.shape).masked_scatter(keep, values)

    return LogProbs(scatter(logps), scatter(entropies) if entropy else None, scatter(hits) if top1 else None)


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1):
        raise ValueError(
            f"expected hidden [N, H] and weight [V, H], found {tuple(hidden.shape)}, {tuple(weight.shape)}"
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"expected labels [{hidden.size(0)}], found {tuple(labels.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, found {temperature}")


def _autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, head: _Head) -> tuple[Tensor, Tensor | None]:
    """float32 logits [c, V] before temperature, and tanh' of the soft cap. -inf becomes the smallest number, so that
    0 * -inf never arises."""
    x = (rows @ weight.T).float()
    if bias is not None:
        x += bias.float()
    if head.scale != 1.0:
        x *= head.scale
    slope = None
    if head.softcap is not None:
        x = torch.tanh_(x.div_(head.softcap))
        slope = 1 - x.square()
        x *= head.softcap
    return x.clamp_(min=torch.finfo(torch.float32).min / 4), slope


def _chunks(count: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        head: _Head,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = hidden.size(0)
        out = hidden.new_empty(count, dtype=torch.float32)
        lse = torch.empty_like(out)
        entropies = torch.zeros_like(out)
        hits = torch.zeros(count, dtype=torch.bool, device=hidden.device)
        needs_hidden, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        head_trains = needs_weight or needs_bias
        gradient = torch.empty_like(hidden) if needs_hidden and not head_trains else None
        for part in _chunks(count, weight.size(0)):
            x, slope = _logits(hidden[part], weight, bias, head)
            target = labels[part, None]
            if head.want_top1:
                hits[part] = x.argmax(dim=1) == labels[part]
            x /= temperature
            picked = x.gather(1, target).squeeze(1)
            lse[part] = torch.logsumexp(x, dim=1)
            out[part] = picked - lse[part]
            if not head.want_entropy and gradient is None:
                continue
            p = torch.exp(x - lse[part, None])
            if head.want_entropy:
                entropies[part] = lse[part] - torch.linalg.vecdot(p, x)
            if gradient is not None:
                _probabilities_to_logit_gradient(p, target, slope, head.scale / temperature)
                gradient[part] = p.to(weight.dtype) @ weight
        ctx.frozen = not head_trains
        ctx.head, ctx.temperature = head, temperature
        ctx.has_bias = bias is not None
        saved = (
            [gradient] if ctx.frozen else [hidden, weight, labels, lse, *([bias] if bias is not None else [])]
        )
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(entropies, hits)
        return out, entropies, hits

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_logps: Tensor, *_: Tensor) -> tuple[Any, ...]:
        if ctx.frozen:
            (gradient,) = ctx.saved_tensors
            scaled = (gradient * grad_logps[:, None]).to(gradient.dtype)
            return scaled, None, None, None, None, None
        return _LinearLogProb._recompute(ctx, grad_logps)

    @staticmethod
    def _recompute(ctx: Any, grad_logps: Tensor) -> tuple[Any, ...]:
        hidden, weight, labels, lse, *rest = ctx.saved_tensors
        bias = rest[0] if ctx.has_bias else None
        needs_hidden, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = (
            bias.new_zeros(bias.shape, dtype=torch.float32) if needs_bias and bias is not None else None
        )
        for part in _chunks(hidden.size(0), weight.size(0)):
            x, slope = _logits(hidden[part], weight, bias, ctx.head)
            p = torch.exp_(x.div_(ctx.temperature).sub_(lse[part, None]))
            _probabilities_to_logit_gradient(p, labels[part, None], slope, ctx.head.scale / ctx.temperature)
            p *= grad_logps[part, None]
            low = p.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = low @ weight
            if grad_weight is not None:
                grad_weight.addmm_(p.T, hidden[part].float())
            if grad_bias is not None:
                grad_bias += p.sum(dim=0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _probabilities_to_logit_gradient(p: Tensor, target: Tensor, slope: Tensor | None, factor: float) -> None:
    """In place: p -> d logp / d (h W^T + b) = ([v = label] - p_v) * slope * factor."""
    p.neg_()
    p.scatter_add_(1, target, torch.ones_like(target, dtype=p.dtype))
    if slope is not None:
        p *= slope
    if factor != 1.0:
        p *= factor
