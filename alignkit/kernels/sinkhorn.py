"""Entropic optimal transport with marginals of ones, in the log domain; exact gradients from the potentials alone.

With scores S = -cost / epsilon, g_0 = 0 and t = 1 .. T:

    f_t = -logsumexp_j(S_ij + g_t-1,j)      rows to sum one
    g_t = -logsumexp_i(S_ij + f_t,i)        columns to sum one
    P = exp(S + f_T + g_T)

The gradient of logsumexp is a softmax, which the potentials give back: with A_t = exp(S + f_t + g_t) and
B_t = exp(S + f_t + g_t-1), whose columns and rows sum to one, the chain rule reads, from t = T down,

    dS -= A_t dg_t    df_t -= A_t dg_t (summed over j)    dS -= df_t B_t    dg_t-1 = -df_t B_t (summed over i)

from dS = P dP, df_T and dg_T its row and column sums. So T n numbers a side are kept, not T matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit import checks
from alignkit.kernels.backend import Implementation, choose

Gradient = Literal["unrolled", "envelope"]
GRADIENTS: tuple[Gradient, ...] = ("unrolled", "envelope")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `sinkhorn` returns; float32 (float64 for float64 input)."""

    plan: Tensor
    """P [..., n, n], columns summing to one; differentiable, detached under `gradient="envelope"`."""
    residual: Tensor
    """[...], the largest error of a row's sum, detached."""
    cost: Tensor
    """[...], sum_ij P_ij cost_ij, differentiable."""
    iterations: int
    """How many were done."""


class Solver(NamedTuple):
    """The two loops over the iterations, for scores [b, n, n]."""

    potentials: Callable[[Tensor, int, float | None], tuple[Tensor, Tensor]]
    """(scores, iterations, tolerance) -> f [done, b, n] and g [done + 1, b, n], of which g_0 = 0 is the first."""
    pull_back: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(scores, f, g, P dP) -> gradient to the scores."""


def sinkhorn(
    cost: Tensor,
    *,
    epsilon: float,
    iterations: int,
    tolerance: float | None = None,
    gradient: Gradient = "unrolled",
    implementation: Implementation | None = None,
) -> Plan:
    """The Sinkhorn plan of `cost` [..., n, n], independent problems in the leading dimensions.

    P starts as exp(-cost / epsilon) and takes `iterations` times: rows to sum one, then columns to sum one. With a
    `tolerance` the plan is that of the first iteration whose residual is at most that in every problem.

    `gradient="unrolled"` is exact through the cost and every iteration done; "envelope" takes P as a constant, so
    that `.cost` has gradient P: exact for sum P cost + epsilon sum P ln P at its optimum. n = 0 gives a
    differentiable zero. Raises ValueError for a cost that is not square, since rows and columns of ones then cannot
    both hold, and for options out of range.
    """
    _check(cost, epsilon, iterations, tolerance, gradient)
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    if not cost.numel():
        zero = cost.sum(dim=(-2, -1))
        return Plan(cost.detach(), zero.detach(), zero, 0)
    solve = _IMPLEMENTATIONS[choose(cost, implementation)]
    plan, done = solve(cost.detach() if gradient == "envelope" else cost, epsilon, iterations, tolerance)
    residual = (plan.detach().sum(dim=-1) - 1).abs().amax(dim=-1)
    return Plan(plan, residual, (plan * cost).sum(dim=(-2, -1)), done)


def _check(cost: Tensor, epsilon: float, iterations: int, tolerance: float | None, gradient: str) -> None:
    if cost.dim() < 2 or cost.size(-1) != cost.size(-2):
        raise ValueError(f"cost must be [..., n, n], found shape {list(cost.shape)}")
    checks.positive("epsilon", epsilon)
    if iterations < 1:
        raise ValueError(f"iterations must be >= 1, found {iterations}")
    if tolerance is not None:
        checks.positive("tolerance", tolerance)
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, found {gradient!r}")


def _reference(cost: Tensor, epsilon: float, iterations: int, tolerance: float | None) -> tuple[Tensor, int]:
    """The matrix itself, scaled again and again; autograd's gradients."""
    log_plan = -cost / epsilon
    done = 0
    while done < iterations:
        done += 1
        log_plan = log_plan - log_plan.logsumexp(dim=-1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(dim=-2, keepdim=True)
        if tolerance is not None and (log_plan.exp().sum(dim=-1) - 1).abs().max() <= tolerance:
            break
    return log_plan.exp(), done


def _torch_potentials(scores: Tensor, iterations: int, tolerance: float | None) -> tuple[Tensor, Tensor]:
    f: list[Tensor] = []
    g = [torch.zeros_like(scores[:, 0])]
    for _ in range(iterations):
        row = (scores + g[-1][:, None]).logsumexp(dim=2).neg_()
        if tolerance is not None and f and residuals(f[-1], row).max() <= tolerance:
            break
        f.append(row)
        g.append((scores + row[:, :, None]).logsumexp(dim=1).neg_())
    return torch.stack(f), torch.stack(g)


def residuals(f: Tensor, following: Tensor) -> Tensor:
    """|row sums of P - 1| after an iteration with potential f, from the next one's: its rows sum to e^(f - f')."""
    return torch.expm1(f - following).abs()


def _torch_pull_back(scores: Tensor, f: Tensor, g: Tensor, weighted: Tensor) -> Tensor:
    total, row, column = weighted.clone(), weighted.sum(dim=2), weighted.sum(dim=1)
    for step in reversed(range(len(f))):
        by_rows = scores + f[step, :, :, None]
        share = torch.exp(by_rows + g[step + 1, :, None]).mul_(column[:, None])
        total -= share
        row = row - share.sum(dim=2)
        share = by_rows.add_(g[step, :, None]).exp_().mul_(row[:, :, None])
        total -= share
        row, column = torch.zeros_like(row), share.sum(dim=1).neg_()
    return total


def _torch(cost: Tensor, epsilon: float, iterations: int, tolerance: float | None) -> tuple[Tensor, int]:
    return _Sinkhorn.apply(cost, epsilon, iterations, tolerance, Solver(_torch_potentials, _torch_pull_back))


def _triton(cost: Tensor, epsilon: float, iterations: int, tolerance: float | None) -> tuple[Tensor, int]:
    from alignkit.kernels.triton.sinkhorn import SOLVER

    return _Sinkhorn.apply(cost, epsilon, iterations, tolerance, SOLVER)


_IMPLEMENTATIONS: dict[Implementation, Callable[[Tensor, float, int, float | None], tuple[Tensor, int]]] = {
    "torch": _torch,
    "triton": _triton,
    "reference": _reference,
}


def _scores(cost: Tensor, epsilon: float) -> Tensor:
    """S [b, n, n], less each row's largest: the first row step takes any such constant out again, and small numbers
    keep their digits."""
    scores = cost.reshape(-1, *cost.shape[-2:]) / -epsilon
    return scores - scores.amax(dim=2, keepdim=True)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, epsilon: float, iterations: int, tolerance: float | None, solver: Solver
    ) -> tuple[Tensor, int]:
        scores = _scores(cost, epsilon)
        f, g = solver.potentials(scores, iterations, tolerance)
        # a softmax, not exp(S + f + g): the columns' sums are then exact even where S is huge
        plan = torch.softmax(scores.add_(f[-1, :, :, None]), dim=1).view(cost.shape)
        ctx.epsilon, ctx.solver = epsilon, solver
        ctx.save_for_backward(cost, plan, f, g)
        return plan, len(f)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
        cost, plan, f, g = ctx.saved_tensors
        scores = _scores(cost, ctx.epsilon)
        weighted = (upstream * plan).view(scores.shape)
        gradient = ctx.solver.pull_back(scores, f, g, weighted)
        return gradient.div_(-ctx.epsilon).view(cost.shape), None, None, None, None
