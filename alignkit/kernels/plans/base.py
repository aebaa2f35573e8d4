"""Base class of the solvers, and parts that they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignkit.kernels.sinkhorn import Plan

Gradient = Literal["unrolled", "envelope", "implicit"]
"""How `Plan.cost` is differentiated: through every iteration, with the plan held fixed, or at the plan's optimum."""


class Solver(ABC):
    """A way to solve min_P <P, D> + R(P) over plans P whose rows and columns sum to one."""

    matrices: ClassVar[int] = 2
    """Number of [n, n] float32 matrices that fit in the solver's buffers, for estimates of memory."""

    @property
    def vectors(self) -> int:
        """Number of [n] float32 vectors kept for the backward."""
        return 2

    @abstractmethod
    def __call__(self, cost: Tensor) -> Plan:
        """Compute the plan of the costs D [..., n, n]."""

    @abstractmethod
    def regularisation(self, plan: Tensor) -> Tensor:
        """Compute R(P) of plans [..., n, n]: [...]."""

    def gap(self, cost: Tensor, plan: Tensor) -> Tensor:
        """Compute the objective of the identity minus that of `plan`, [...], with gradient I - P by the costs.

        It is >= 0 for an optimal plan, and 0 where matching row i with column i is optimal. The gradient is exact for
        an optimal plan, by the envelope theorem. This is the Monge gap (Uscidda and Cuturi, 2023) of the map from
        column i to row i.
        """
        plan = plan.detach()
        identity = torch.eye(plan.shape[-1], dtype=plan.dtype, device=plan.device)
        linear = cost.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - (plan * cost).sum(dim=(-2, -1))
        return linear + self.regularisation(identity) - self.regularisation(plan)


def require_square(cost: Tensor) -> None:
    """Raise ValueError unless the costs are [..., n, n]."""
    if cost.dim() < 2 or cost.size(-1) != cost.size(-2):
        raise ValueError(f"cost must be [..., n, n], found shape {list(cost.shape)}")


def entropy(plan: Tensor, epsilon: float) -> Tensor:
    """Compute epsilon sum_ij P_ij ln P_ij, [...]."""
    return epsilon * torch.special.xlogy(plan, plan).sum(dim=(-2, -1))


def nothing(cost: Tensor) -> Plan:
    """The plan of costs without elements, whose cost is a differentiable zero."""
    zero = cost.sum(dim=(-2, -1))
    return Plan(cost.detach(), zero.detach(), zero)


def each(cost: Tensor, solve: Callable[[Tensor], tuple[Tensor, int]]) -> tuple[Tensor, Tensor, int]:
    """Solve each problem of the costs [..., n, n] in float64, without gradient.

    `solve` maps costs [n, n] to (plan, steps). Returns (plans [..., n, n] and residuals [...] in the costs' dtype,
    the most steps that a problem took).
    """
    found = [solve(one) for one in cost.detach().double().reshape(-1, *cost.shape[-2:])]
    plans = torch.stack([plan for plan, _ in found]).view(cost.shape)
    residual = (plans.sum(dim=-1) - 1).abs().amax(dim=-1)
    return plans.to(cost.dtype), residual.to(cost.dtype), max(steps for _, steps in found)
