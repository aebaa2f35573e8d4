"""What the loss functions return."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """A preference loss over B items, float32 (float64 for float64 input)."""

    losses: Tensor
    """[B], differentiable; the caller reduces."""
    chosen_rewards: Tensor
    """[B], implicit rewards of the preferred side, detached."""
    rejected_rewards: Tensor
    """[B], implicit rewards of the dispreferred side, detached."""


@dataclass(frozen=True, slots=True)
class SinkhornLoss:
    """A transport loss over n student and n teacher rows, float32 (float64 for float64 input)."""

    loss: Tensor
    """Scalar, differentiable."""
    plan: Tensor
    """[n, n], student rows by teacher rows, columns summing to one, detached."""
    residual: Tensor
    """Scalar, the largest error of a marginal, detached: how far the iterations are from the optimum."""


@dataclass(frozen=True, slots=True)
class BalancedLoss:
    """Two mutual distillation losses over N rows, float32 (float64 for float64 input)."""

    student: Tensor
    """[N], temperature^2 (w_F forward KL + w_R reverse KL), with gradient to the student only."""
    teacher: Tensor
    """[N], temperature^2 reverse KL, with gradient to the teacher only; none where the teacher is frozen."""
    forward_kl: Tensor
    """[N], KL(teacher || student) in nats, detached, without the square of the temperature."""
    reverse_kl: Tensor
    """[N], KL(student || teacher) in nats, detached, without the square of the temperature."""
    student_entropy: Tensor
    """[N], nats, detached."""
    teacher_entropy: Tensor
    """[N], nats, detached."""
    forward_weight: Tensor
    """[N], w_F, detached: what the gate chose."""
