"""`sinkhorn` as a custom op, which `torch.compile` passes through without a graph break."""

from typing import Any

import torch
from torch import Tensor

from alignkit.kernels.backend import engine
from alignkit.kernels.sinkhorn.fused import pull_back, solve

PACKAGE = str(__package__)


def compiled(cost: Tensor, epsilon: float, iterations: int, implementation: str) -> Tensor:
    """Compute the plan [..., n, n], differentiable through every iteration."""
    plan: Tensor = sinkhorn_op(cost, epsilon, iterations, implementation)[0]
    return plan


@torch.library.custom_op("alignkit::sinkhorn", mutates_args=())
def sinkhorn_op(
    cost: Tensor, epsilon: float, iterations: int, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the plan [..., n, n] and the potentials f and g of every iteration; see `records.Engine`."""
    return solve(cost, epsilon, iterations, engine(PACKAGE, implementation))


@sinkhorn_op.register_fake
def _(cost: Tensor, epsilon: float, iterations: int, implementation: str) -> tuple[Tensor, Tensor, Tensor]:
    rows = cost.size(-1)
    problems = cost.numel() // (rows * rows)
    plan = cost.new_empty(cost.shape)
    return plan, *(cost.new_empty(steps, problems, rows) for steps in (iterations, iterations + 1))


@torch.library.custom_op("alignkit::sinkhorn_gradient", mutates_args=())
def gradient_op(
    upstream: Tensor, cost: Tensor, plan: Tensor, f: Tensor, g: Tensor, epsilon: float, implementation: str
) -> Tensor:
    """Return the gradient to the cost from that of the plan."""
    return pull_back(upstream, cost, plan, f, g, epsilon, engine(PACKAGE, implementation))


@gradient_op.register_fake
def _(upstream: Tensor, cost: Tensor, *_: Any) -> Tensor:
    return cost.new_empty(cost.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    cost, ctx.epsilon, _, ctx.implementation = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(cost, *output)


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    return gradient_op(upstream, *ctx.saved_tensors, ctx.epsilon, ctx.implementation), None, None, None


sinkhorn_op.register_autograd(_backward, setup_context=_setup)
