"""Confidence of a linear head, for calibration: its largest probability, and whether the label has it."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from alignkit.kernels.linear_logprob import linear_logprob


@dataclass(frozen=True, slots=True)
class Confidence:
    """The results of `linear_confidence`, [N] each."""

    probability: Tensor
    """Largest probability, float32."""
    right: Tensor
    """Whether the label has the largest probability, bool."""


def linear_confidence(hidden: Tensor, weight: Tensor, labels: Tensor, **head: Any) -> Confidence:
    """Compute the largest probability of softmax(`hidden` [N, H] `weight` [V, H]^T) and whether `labels` [N] has it.

    `head` may hold the arguments bias, logit_scale and softcap of `linear_logprob`. There is no gradient.
    """
    with torch.no_grad():
        found = linear_logprob(hidden, weight, labels, top1=True, confidence=True, **head)
    return Confidence(cast(Tensor, found.confidence), cast(Tensor, found.top1))
