"""The losses: pure functions from log-probabilities or logits to per-item losses and what is logged beside them."""

from alignkit.losses.f_dpo import f_dpo_loss
from alignkit.losses.types import PreferenceLoss

__all__ = ["PreferenceLoss", "f_dpo_loss"]
