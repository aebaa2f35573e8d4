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
