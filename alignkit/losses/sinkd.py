"""SinKD: distillation by the Sinkhorn distance between a set of student rows and one of teacher rows.

It follows the equations of the paper (arXiv 2402.17110). The released decoder code computes something else.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignkit import arguments
from alignkit.divergences import widen
from alignkit.kernels.plans import Gradient, Sinkhorn, Solver
from alignkit.losses.types import SinkhornLoss

Reduction = Literal["sum", "mean"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean")


@dataclass(frozen=True, slots=True)
class SelfCosts:
    """Costs between the student rows themselves, and between the teacher rows themselves, [n, n] each."""

    student: Tensor
    teacher: Tensor


def sinkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    debiased: bool = False,
    reduction: Reduction = "sum",
    gradient: Gradient = "unrolled",
    solver: Solver | None = None,
    pairing_weight: float = 0.0,
) -> SinkhornLoss:
    """L = sum_ij P_ij D_ij, D_ij = || softmax(s_i / tau) - softmax(t_j / tau) ||_1, P the Sinkhorn plan of D.

    Both logits are [n, V] of any float dtype, and are computed in float32 (float64 stays float64). No gradient
    reaches the teacher. The rows are the items to match, normally loss tokens. Leave padding out: a zeroed row would
    be transported too. n = 0 gives a differentiable zero. `debiased` subtracts the self terms. `transport_loss`
    explains the other options. L is not multiplied by temperature^2. Permuting the student's rows leaves L unchanged,
    so L does not tie row i of the student to row i of the teacher: combine it with cross-entropy or a KL. Raises
    ValueError for unequal shapes and for options out of range.
    """
    arguments.positive("temperature", temperature)
    arguments.paired_logits(student_logits, teacher_logits)
    student = torch.softmax(widen(student_logits) / temperature, dim=-1)
    teacher = torch.softmax(widen(teacher_logits.detach()) / temperature, dim=-1)
    own = SelfCosts(_l1(student, student), _l1(teacher, teacher)) if debiased else None
    return transport_loss(
        _l1(student, teacher),
        own,
        epsilon=epsilon,
        iterations=iterations,
        reduction=reduction,
        gradient=gradient,
        solver=solver,
        pairing_weight=pairing_weight,
    )


def transport_loss(
    cost: Tensor,
    self_costs: SelfCosts | None = None,
    *,
    epsilon: float = 0.1,
    iterations: int = 20,
    reduction: Reduction = "sum",
    gradient: Gradient = "unrolled",
    solver: Solver | None = None,
    pairing_weight: float = 0.0,
) -> SinkhornLoss:
    """Compute `sinkd_loss` from the costs D [n, n], student rows by teacher rows.

    P starts as exp(-D / epsilon). Each of the `iterations` scales its rows to sum to one, then its columns. All
    marginals are one, so `reduction="sum"` (the paper's) grows with n; "mean" divides by n. `gradient="unrolled"` is
    the exact gradient, through D and every iteration. "envelope" is sum_ij sg(P_ij) dD_ij, with a cheaper backward:
    exact for the regularised cost sum P D + epsilon sum P ln P at its optimum, an approximation for L. "implicit" is
    exact for L at that optimum, so it needs iterations that reach it. `solver` replaces the iterations; `epsilon`,
    `iterations` and `gradient` are then not used.

    The entropic bias makes L > 0 between equal sets. For an epsilon near the largest cost it also draws the student's
    rows together. `self_costs` removes it: L(q, p) - (L(q, q) + L(p, p)) / 2, which is zero between equal sets.

    `pairing_weight` > 0 adds that much of `Solver.gap`, which is zero where matching student row i with teacher row i
    is optimal, and positive otherwise. With weight 1 and epsilon near 0 the sum is tr D, the L1 distance of each
    pair.
    """
    _check(cost, reduction)
    rows = cost.shape[0]
    solver = solver or Sinkhorn(epsilon, iterations, gradient)
    plan = solver(cost)
    loss = plan.cost
    if self_costs is not None:
        for name, own in (("student", self_costs.student), ("teacher", self_costs.teacher)):
            arguments.shaped(f"the {name}'s self-cost", own, (rows, rows))
            loss = loss - solver(own).cost / 2
    share = max(rows, 1) if reduction == "mean" else 1
    found, gap = loss / share, torch.zeros_like(plan.residual)
    loss = found
    if pairing_weight:
        pairing = solver.gap(cost.to(plan.plan.dtype), plan.plan) / share
        loss, gap = found + pairing_weight * pairing, pairing.detach()
    return SinkhornLoss(loss, plan.plan.detach(), plan.residual, found.detach(), gap, plan.steps)


def _check(cost: Tensor, reduction: str) -> None:
    if cost.dim() != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must be [n, n], found shape {list(cost.shape)}")
    arguments.one_of("reduction", reduction, REDUCTIONS)


def _l1(left: Tensor, right: Tensor) -> Tensor:
    return torch.cdist(left, right, p=1)
