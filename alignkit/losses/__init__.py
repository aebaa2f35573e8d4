"""Losses: pure functions from log-probabilities or logits to per-item losses and the metrics logged with them."""

from alignkit.losses.bd_kd import balance, bd_kd_loss
from alignkit.losses.d2o import D2OCoefficients, d2o_coefficients, d2o_loss
from alignkit.losses.f_dpo import f_dpo_loss
from alignkit.losses.odds import log_odds
from alignkit.losses.sinkd import SelfCosts, sinkd_loss, transport_loss
from alignkit.losses.types import (
    BalancedLoss,
    CompletionLoss,
    LabelledLogps,
    LabelledLoss,
    PairLogps,
    PreferenceLoss,
    SampleLogps,
    SinkhornLoss,
    TokenLogps,
)

__all__ = [
    "BalancedLoss",
    "CompletionLoss",
    "D2OCoefficients",
    "LabelledLogps",
    "LabelledLoss",
    "PairLogps",
    "PreferenceLoss",
    "SampleLogps",
    "SelfCosts",
    "SinkhornLoss",
    "TokenLogps",
    "balance",
    "bd_kd_loss",
    "d2o_coefficients",
    "d2o_loss",
    "f_dpo_loss",
    "log_odds",
    "sinkd_loss",
    "transport_loss",
]
