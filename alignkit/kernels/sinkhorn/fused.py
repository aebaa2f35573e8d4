"""The autograd function of `sinkhorn`, over an engine's two loops."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.sinkhorn.records import Engine


def fused(cost: Tensor, epsilon: float, iterations: int, engine: Engine) -> Tensor:
    """Compute the plan [..., n, n], differentiable through every iteration."""
    return _Sinkhorn.apply(cost, epsilon, iterations, engine)


def _scores(cost: Tensor, epsilon: float) -> Tensor:
    """Scores S [b, n, n] minus each row's maximum, for precision. The first row step removes any such constant."""
    scores = cost.reshape(-1, *cost.shape[-2:]) / -epsilon
    return scores - scores.amax(dim=2, keepdim=True)


def solve(cost: Tensor, epsilon: float, iterations: int, engine: Engine) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the plan [..., n, n] and the potentials f and g of every iteration; see `Engine.potentials`."""
    scores = _scores(cost, epsilon)
    f, g = engine.potentials(scores, iterations)
    # a softmax, not exp(S + f + g), so that columns sum to one exactly even for huge S
    plan = torch.softmax(scores.add_(f[-1, :, :, None]), dim=1).view(cost.shape)
    return plan, f, g


def pull_back(
    upstream: Tensor, cost: Tensor, plan: Tensor, f: Tensor, g: Tensor, epsilon: float, engine: Engine
) -> Tensor:
    """Compute the gradient to the cost from that of the plan, `upstream`."""
    scores = _scores(cost, epsilon)
    weighted = (upstream * plan).view(scores.shape)
    return engine.pull_back(scores, f, g, weighted).div_(-epsilon).view(cost.shape)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: Tensor, epsilon: float, iterations: int, engine: Engine) -> Tensor:
        plan, f, g = solve(cost, epsilon, iterations, engine)
        ctx.epsilon, ctx.engine = epsilon, engine
        ctx.save_for_backward(cost, plan, f, g)
        return plan

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        cost, plan, f, g = ctx.saved_tensors
        gradient = pull_back(upstream, cost, plan, f, g, ctx.epsilon, ctx.engine)
        return gradient, None, None, None
