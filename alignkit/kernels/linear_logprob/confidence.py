"""How certain a linear head is of its first choice, and whether that is the label; thin over `linear_logprob`."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from alignkit.kernels.linear_logprob import linear_logprob


@dataclass(frozen=True, slots=True)
class Confidence:
    """The results of `linear_confidence`, [N] each."""

    probability: Tensor
    """The largest probability, float32."""
    right: Tensor
    """bool, whether the label has it."""


def linear_confidence(hidden: Tensor, weight: Tensor, labels: Tensor, **head: Any) -> Confidence:
    """The largest probability of softmax(`hidden` [N, H] `weight` [V, H]^T) and whether `labels` [N] has it.

    `head` takes the arguments bias, logit_scale and softcap of `linear_logprob`. No gradient.
    """
    with torch.no_grad():
        found = linear_logprob(hidden, weight, labels, top1=True, confidence=True, **head)
    return Confidence(cast(Tensor, found.confidence), cast(Tensor, found.top1))
