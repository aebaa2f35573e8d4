"""The losses: pure functions from log-probabilities or logits to per-item losses and what is logged beside them."""

from alignkit.losses.d2o import D2OCoefficients, d2o_coefficients, d2o_loss
from alignkit.losses.f_dpo import f_dpo_loss
from alignkit.losses.types import PreferenceLoss

__all__ = ["D2OCoefficients", "PreferenceLoss", "d2o_coefficients", "d2o_loss", "f_dpo_loss"]
