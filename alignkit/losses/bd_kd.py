"""Entropy-gap balanced distillation, after BD-KD (arXiv 2212.12965).

From the paper's abstract: student and teacher train jointly; the student's forward and reverse KL are weighted by the
gap between the entropies; the teacher's regulariser is the reverse KL. Our own choices: both gates with their
direction and constants, the factor temperature^2, and that neither model gets gradient from the other's term.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from alignkit import arguments
from alignkit.divergences import widen
from alignkit.losses.types import BalancedLoss

Gate = Literal["hard", "soft"]


def bd_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    gate: Gate = "hard",
    nu: float = 2.0,
    kappa: float = 1.0,
    tempered_entropy: bool = True,
) -> BalancedLoss:
    """Compute the distillation terms of student and teacher for each row.

        student = tau^2 [ w_F KL(sg p || q) + w_R KL(q || sg p) ]
        teacher = tau^2 KL(sg q || p)

    p = softmax(t / tau), q = softmax(s / tau), sg stops the gradient. Both logits are [N, V] of any float dtype, and
    are computed in float32 (float64 stays float64). Logits may be of any finite size, or -inf in columns that are
    -inf on both sides (padded vocabulary). A column that is -inf on one side only makes a KL infinite, as the
    definition does. The cross-entropy with the labels is not included. `balance` explains `gate`, `nu` and `kappa`.
    `tempered_entropy=False` computes the entropies at temperature 1. Raises ValueError for unequal shapes and for
    options out of range.
    """
    arguments.positive("temperature", temperature)
    arguments.paired_logits(student_logits, teacher_logits)
    student, teacher = widen(student_logits), widen(teacher_logits)
    log_q = torch.log_softmax(student / temperature, dim=-1)
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    at_one = (
        (log_q, log_p) if tempered_entropy else (student.log_softmax(dim=-1), teacher.log_softmax(dim=-1))
    )
    return balance(
        _kl(log_p.detach(), log_q),
        _kl(log_q, log_p.detach()),
        _entropy(at_one[0]),
        _entropy(at_one[1]),
        teacher_kl=_kl(log_q.detach(), log_p) if log_p.requires_grad else None,
        temperature=temperature,
        gate=gate,
        nu=nu,
        kappa=kappa,
    )


def balance(
    forward_kl: Tensor,
    reverse_kl: Tensor,
    student_entropy: Tensor,
    teacher_entropy: Tensor,
    *,
    teacher_kl: Tensor | None = None,
    temperature: float = 1.0,
    gate: Gate = "hard",
    nu: float = 2.0,
    kappa: float = 1.0,
) -> BalancedLoss:
    """Compute `bd_kd_loss` from divergences: [N] each, in nats, of the tempered distributions.

    `forward_kl` = KL(p || q) and `reverse_kl` = KL(q || p) must carry gradient to the student only. `teacher_kl` is
    KL(q || p) with gradient to the teacher only; None for a frozen teacher. With d = H(p) - H(q):

        hard: (w_F, w_R) = (nu, 1) where d > 0, else (1, nu);  nu >= 1, and 1 is the plain sum
        soft: w_F = sigma(kappa d), w_R = 1 - w_F;             kappa >= 0, and 0 is half the sum

    A student that is more certain than its teacher thus gets more of the forward KL, which spreads its distribution.
    A less certain one gets more of the reverse KL, which sharpens it. The weights carry no gradient. Raises
    ValueError for options out of range.
    """
    arguments.positive("temperature", temperature)
    arguments.at_least("nu", nu, 1)
    arguments.at_least("kappa", kappa, 0)
    arguments.one_of("gate", gate, GATES)
    student_entropy, teacher_entropy = student_entropy.detach(), teacher_entropy.detach()
    forward_weight, reverse_weight = GATES[gate](teacher_entropy - student_entropy, nu, kappa)
    # Gradients of a tempered KL shrink with the square of the temperature.
    scale = temperature**2
    return BalancedLoss(
        student=scale * (forward_weight * forward_kl + reverse_weight * reverse_kl),
        teacher=scale * (reverse_kl.detach() if teacher_kl is None else teacher_kl),
        forward_kl=forward_kl.detach(),
        reverse_kl=reverse_kl.detach(),
        student_entropy=student_entropy,
        teacher_entropy=teacher_entropy,
        forward_weight=forward_weight,
    )


def _hard(gap: Tensor, nu: float, _kappa: float) -> tuple[Tensor, Tensor]:
    strong, weak = torch.full_like(gap, nu), torch.ones_like(gap)
    return torch.where(gap > 0, strong, weak), torch.where(gap > 0, weak, strong)


def _soft(gap: Tensor, _nu: float, kappa: float) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(kappa * gap), torch.sigmoid(-kappa * gap)


GATES: dict[str, Callable[[Tensor, float, float], tuple[Tensor, Tensor]]] = {"hard": _hard, "soft": _soft}


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each row, in nats. Where a is 0 the term and its gradient are 0, also for -inf minus -inf."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a == 0, 0.0)).sum(dim=-1)


def _entropy(log_a: Tensor) -> Tensor:
    log_a = log_a.detach()
    a = log_a.exp()
    return -(a * log_a.masked_fill(a == 0, 0.0)).sum(dim=-1)
