"""The autograd function of `linear_logprob`, over an engine's two passes."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.head import LogitTransform, Operands, gathered
from alignkit.kernels.linear_logprob.records import Engine, Found, Request


def fused(operands: Operands, labels: Tensor, request: Request, engine: Engine) -> dict[str, Tensor]:
    """Compute the values that `request` returns, [N] each. No label may be ignored."""
    values = _LinearLogProb.apply(*operands, labels, request, engine)
    return dict(zip(request.returned, values, strict=True))


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        labels: Tensor,
        request: Request,
        engine: Engine,
    ) -> tuple[Tensor, ...]:
        swept = engine.sweep(Operands(hidden, weight, bias, transform), labels, request)
        picked, lse, ctx.kept = swept.found
        for_head = (hidden, weight, bias, labels, picked, lse) if request.head_gradient else (None,) * 6
        ctx.save_for_backward(swept.hidden_gradient, *for_head)
        ctx.transform, ctx.trains, ctx.engine = transform, request.head_gradient, engine
        ctx.mark_non_differentiable(*(swept.values[name] for name in request.outputs))
        return tuple(swept.values[name] for name in request.returned)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
        hidden_gradient, hidden, weight, bias, labels, picked, lse = ctx.saved_tensors
        to_hidden = to_weight = to_bias = None
        if hidden_gradient is not None:
            to_hidden = (hidden_gradient * upstream[:, None]).to(hidden_gradient.dtype)
        if ctx.trains:
            with gathered(weight, bias):
                operands = Operands(hidden, weight, bias, ctx.transform)
                found = Found(picked, lse, ctx.kept)
                to_weight, to_bias = ctx.engine.head_gradient(operands, labels, found, upstream)
            to_weight = to_weight.to(weight.dtype)
            to_bias = to_bias if bias is None else to_bias.to(bias.dtype)
        return to_hidden, to_weight, to_bias, None, None, None, None
