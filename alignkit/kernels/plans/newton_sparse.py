"""Sinkhorn-Newton-Sparse (arXiv 2401.12253): the converged entropic plan, by Newton steps with a sparse Hessian.

With S = -D / epsilon and P = exp(S + f 1' + 1 g'), the dual F(f, g) = sum f + sum g - sum P is concave. Its gradient
is (1 - P 1, 1 - P' 1) and its negative Hessian M = [[diag(P 1), P], [P', diag(P' 1)]]. A Newton step solves M z =
gradient by conjugate gradients with only the largest entries of P off the diagonal. The diagonal keeps the full sums,
so M stays diagonally dominant, and semi-definite whatever is dropped.

Ours, and needed where the paper's two stages overflow at a small epsilon: epsilon is annealed down from `WIDEST`, a
step is taken only if F is finite and grows, and one Sinkhorn sweep follows each step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from alignkit import arguments
from alignkit.kernels.plans.base import Gradient, Solver, each, entropy, nothing, require_square
from alignkit.kernels.plans.implicit import implicit_cost
from alignkit.kernels.sinkhorn import Plan

WIDEST = 0.2
"""The epsilon at which annealing begins, unless epsilon itself is larger."""
SWEEPS = 10
"""Sinkhorn sweeps at each epsilon before the Newton steps."""
MOST_STEPS = 60
"""Newton steps at each epsilon."""
ON_THE_WAY = 1e-3
"""Error of the marginals at which annealing goes to the next epsilon."""
CG_STEPS, CG_TOLERANCE = 300, 1e-8
ARMIJO = 1e-4
HALVINGS = 30
ROUNDING = 1e-14
"""Relative error of F in float64, by which it may fall: near the optimum it grows by less."""


@dataclass(frozen=True)
class NewtonSparse(Solver):
    """Newton steps with a sparse Hessian to the optimum of R(P) = epsilon sum P ln P, in float64.

    `density` is the mean number of entries that a row of P keeps in the Hessian. `tolerance` is the error of the
    marginals at which it stops. `gradient`: "implicit" is exact for the transport cost, "envelope" holds the plan
    fixed, which is exact for the regularised cost. Raises ValueError for options out of range.
    """

    matrices: ClassVar[int] = 14  # 7 of float64

    epsilon: float = 0.1
    density: int = 15
    tolerance: float = 1e-8
    gradient: Gradient = "implicit"

    def __post_init__(self) -> None:
        """Check the options."""
        arguments.positive("epsilon", self.epsilon)
        arguments.positive("tolerance", self.tolerance)
        arguments.one_of("gradient", self.gradient, ("envelope", "implicit"))
        if self.density < 1:
            raise ValueError(f"density must be >= 1, found {self.density}")

    def __call__(self, cost: Tensor) -> Plan:
        """Compute the plan of the costs [..., n, n]; `steps` counts Newton steps."""
        require_square(cost)
        cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
        if not cost.numel():
            return nothing(cost)
        plan, residual, steps = each(cost, self._solve)
        total = (
            implicit_cost(cost, plan, self.epsilon)
            if self.gradient == "implicit"
            else (plan * cost).sum(dim=(-2, -1))
        )
        return Plan(plan, residual, total, steps)

    def regularisation(self, plan: Tensor) -> Tensor:
        """Compute epsilon sum P ln P, [...]."""
        return entropy(plan, self.epsilon)

    def _solve(self, cost: Tensor) -> tuple[Tensor, int]:
        states = [*self.trajectory(cost)]
        state, levels = states[-1], len({state.epsilon for state in states})
        # a softmax, so that columns sum to one exactly
        return torch.softmax(-cost / self.epsilon + state.f[:, None], dim=0), len(states) - levels

    def trajectory(self, cost: Tensor) -> Iterator["State"]:
        """Yield the potentials of the float64 costs [n, n] at the start and after each Newton step and its sweep."""
        epsilon = max(self.epsilon, WIDEST)
        f = g = cost.new_zeros(len(cost))
        while True:
            scores = -cost / epsilon
            f, g = _sweep(scores, g, SWEEPS)
            tolerance = self.tolerance if epsilon == self.epsilon else ON_THE_WAY
            yield State(epsilon, f, g)
            for _ in range(MOST_STEPS):
                plan = torch.exp(scores + f[:, None] + g)
                error = torch.stack([1 - plan.sum(dim=1), 1 - plan.sum(dim=0)])
                if error.abs().max() <= tolerance:
                    break
                f, g = self._step(scores, plan, error, f, g)
                f, g = _sweep(scores, g, 1)
                yield State(epsilon, f, g)
            if epsilon == self.epsilon:
                return
            before, epsilon = epsilon, max(self.epsilon, epsilon / 2)
            f, g = f * (before / epsilon), g * (before / epsilon)

    def _step(
        self, scores: Tensor, plan: Tensor, error: Tensor, f: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The potentials after a Newton step, halved until F is finite and grows; unchanged if it never does."""
        z = _conjugate_gradients(_largest(plan, self.density), plan.sum(dim=1), plan.sum(dim=0), error)
        now, slope = potential(scores, f, g), float((error * z).sum())
        allowed = ROUNDING * float(f.abs().sum() + g.abs().sum() + len(f))
        for halving in range(HALVINGS):
            length = 0.5**halving
            new = f + length * z[0], g + length * z[1]
            value = potential(scores, *new)
            if value >= now + ARMIJO * length * slope - allowed:  # false for NaN and -inf
                return new
        return f, g


class State(NamedTuple):
    """Potentials of a problem at one epsilon: P = exp(-D / epsilon + f 1' + 1 g')."""

    epsilon: float
    f: Tensor
    """[n]"""
    g: Tensor
    """[n]"""


def potential(scores: Tensor, f: Tensor, g: Tensor) -> float:
    """Compute F(f, g) = sum f + sum g - sum P."""
    return float(f.sum() + g.sum() - torch.exp(scores + f[:, None] + g).sum())


def _sweep(scores: Tensor, g: Tensor, times: int) -> tuple[Tensor, Tensor]:
    for _ in range(times):
        f = -(scores + g).logsumexp(dim=1)
        g = -(scores + f[:, None]).logsumexp(dim=0)
    return f, g


def _largest(plan: Tensor, density: int) -> Tensor:
    """The plan with zeros but for its `density` * n largest entries."""
    wanted = density * len(plan)
    if wanted >= plan.numel():
        return plan
    kept = plan.flatten().topk(wanted)
    return torch.zeros_like(plan).flatten().scatter_(0, kept.indices, kept.values).view_as(plan)


def _conjugate_gradients(plan: Tensor, rows: Tensor, columns: Tensor, right: Tensor) -> Tensor:
    """Solve [[diag(rows), plan], [plan', diag(columns)]] z = right, [2, n] each, preconditioned by the diagonal."""
    diagonal = torch.stack([rows, columns]).clamp(min=torch.finfo(plan.dtype).tiny)
    z, rest = torch.zeros_like(right), right.clone()
    scaled = rest / diagonal
    direction, size = scaled, (rest * scaled).sum()
    goal = CG_TOLERANCE**2 * size
    for _ in range(CG_STEPS):
        image = diagonal * direction + torch.stack([plan @ direction[1], direction[0] @ plan])
        curvature = (direction * image).sum()
        if not (size > goal and curvature > 0):
            break
        length = size / curvature
        z, rest = z + length * direction, rest - length * image
        scaled = rest / diagonal
        before, size = size, (rest * scaled).sum()
        direction = scaled + (size / before) * direction
    return z
