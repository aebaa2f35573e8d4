"""The exact gradient of an entropic plan's transport cost, from the plan alone.

At the optimum P = exp((f 1' + 1 g' - D) / epsilon) with P 1 = 1 and P' 1 = 1. Differentiating both gives, with
W = P * D (elementwise) and any solution (a, b) of

    [ diag(P 1)      P     ] [a]   [ W  1 ]
    [    P'      diag(P' 1)] [b] = [ W' 1 ]

    d<P, D>/dD = P + (P * (a 1' + 1 b') - W) / epsilon

So nothing is unrolled, and memory is O(n^2). The null vector (1, -1) of the system does not change a 1' + 1 b'.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_RANK_TOLERANCE = 1e-12
"""Relative eigenvalue below which a direction counts as null: plans near a permutation have n of them."""


def implicit_cost(cost: Tensor, plan: Tensor, epsilon: float) -> Tensor:
    """Compute <P, D> [...], with the gradient by D at the optimum. `plan` [..., n, n] must be converged."""
    found: Tensor = _Implicit.apply(cost, plan.detach(), epsilon)
    return found


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: Tensor, plan: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(cost, plan)
        ctx.epsilon = epsilon
        return (plan * cost).sum(dim=(-2, -1))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        cost, plan = (saved.double() for saved in ctx.saved_tensors)
        weighted = plan * cost
        rows, columns = plan.sum(dim=-1, keepdim=True), plan.sum(dim=-2)
        share = (plan / rows).mT  # P' diag(P 1)^-1
        # a is eliminated, which leaves a symmetric system of n unknowns
        system = torch.diag_embed(columns) - share @ plan
        right = weighted.sum(dim=-2)[..., None] - share @ weighted.sum(dim=-1, keepdim=True)
        b = torch.linalg.pinv(system, hermitian=True, rtol=_RANK_TOLERANCE) @ right
        a = (weighted.sum(dim=-1, keepdim=True) - plan @ b) / rows
        gradient = plan + (plan * (a + b.mT) - weighted) / ctx.epsilon
        return (upstream[..., None, None] * gradient).to(upstream.dtype), None, None
