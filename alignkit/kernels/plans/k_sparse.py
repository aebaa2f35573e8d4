"""Sparsity-constrained optimal transport (arXiv 2209.15466): plans with at most k entries a column.

    min_T <T, D> + gamma/2 ||T||^2    rows and columns sum to one, every column has at most k entries

Its semi-dual over alpha [n] is concave:

    psi(alpha) = sum alpha - sum_j max_t [ t . (alpha - D_j) - gamma/2 ||t||^2 ],    t in the simplex, at most k
    entries t_j = projection of the k largest of (alpha - D_j) / gamma onto the simplex,     d psi/d alpha = 1 - T 1

It is maximised by L-BFGS. Columns are exact at every alpha, rows only at a maximum where psi is smooth. Where the
k-th and the next value tie, psi has a kink and no alpha may give a plan. Starting from the potentials of an entropic
plan is ours: psi is piecewise linear for k = 1, and their limit lies inside a piece.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignkit import arguments
from alignkit.kernels.plans.base import Solver, each, nothing, require_square
from alignkit.kernels.plans.newton_sparse import NewtonSparse
from alignkit.kernels.sinkhorn import Plan

MOST_STEPS = 500
START_SHARE, START_LEAST = 0.1, 0.01
"""The entropic plan of the start has epsilon = max(gamma * START_SHARE, START_LEAST)."""
TIED = 0.01
"""Error of a row's sum from which a plan is reported as tied."""


@dataclass(frozen=True)
class KSparse(Solver):
    """A plan with at most `k` entries a column, for R(T) = gamma/2 sum T^2, in float64. Its gradient is the plan.

    The gradient is exact for the regularised cost wherever the rows sum to one. Warns of rows that are off by more
    than a hundredth. Raises ValueError for options out of range.
    """

    matrices: ClassVar[int] = 14  # 7 of float64

    k: int = 4
    gamma: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        arguments.positive("gamma", self.gamma)
        if self.k < 1:
            raise ValueError(f"k must be >= 1, found {self.k}")

    def __call__(self, cost: Tensor) -> Plan:
        """Compute the plan of the costs [..., n, n]; `steps` counts L-BFGS steps."""
        require_square(cost)
        cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
        if not cost.numel():
            return nothing(cost)
        plan, residual, steps = each(cost, self._solve)
        if bool((residual > TIED).any()):
            message = "k_sparse: the rows of a plan do not sum to one, because costs tie; raise k"
            warnings.warn(message, stacklevel=2)
        return Plan(plan, residual, (plan * cost).sum(dim=(-2, -1)), steps)

    def regularisation(self, plan: Tensor) -> Tensor:
        """Compute gamma/2 sum T^2, [...]."""
        return self.gamma / 2 * plan.square().sum(dim=(-2, -1))

    def columns(self, cost: Tensor, alpha: Tensor) -> Tensor:
        """Compute T [n, n] of the costs [n, n] and alpha [n]. Its columns sum to one."""
        k = min(self.k, len(cost))
        largest = ((alpha[:, None] - cost) / self.gamma).topk(k, dim=0)
        excess = largest.values.cumsum(dim=0) - 1
        count = torch.arange(1, k + 1, dtype=cost.dtype, device=cost.device)[:, None]
        support = (largest.values * count > excess).sum(dim=0, keepdim=True)
        threshold = excess.gather(0, support - 1) / support
        return torch.zeros_like(cost).scatter(0, largest.indices, (largest.values - threshold).clamp(min=0))

    def semi_dual(self, cost: Tensor, alpha: Tensor, plan: Tensor) -> Tensor:
        """Compute psi(alpha), where `plan` is `columns(cost, alpha)`."""
        return alpha.sum() - (plan * (alpha[:, None] - cost)).sum() + self.regularisation(plan)

    def _solve(self, cost: Tensor) -> tuple[Tensor, int]:
        epsilon = max(self.gamma * START_SHARE, START_LEAST)
        *_, start = NewtonSparse(epsilon, tolerance=1e-6).trajectory(cost)
        alpha = (epsilon * start.f).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [alpha],
            max_iter=MOST_STEPS,
            tolerance_grad=1e-10,
            tolerance_change=0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            now = alpha.detach()
            plan = self.columns(cost, now)
            alpha.grad = plan.sum(dim=1) - 1
            return -self.semi_dual(cost, now, plan)

        optimizer.step(closure)
        return self.columns(cost, alpha.detach()), int(optimizer.state[alpha]["n_iter"])
