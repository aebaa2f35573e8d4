"""How certain a linear head is of its first choice, and whether that is the label, in token chunks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.kernels.heads import autocast
from alignkit.kernels.sides import logits_buffer, project

CHUNK_BYTES = 24 * 2**20
"""Size of one chunk's float32 logits."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """What `linear_confidence` returns, [N] each."""

    probability: Tensor
    """The largest probability, float32."""
    right: Tensor
    """bool, whether the label has it."""


def linear_confidence(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Confidence:
    """Of softmax(`hidden` [N, H] `weight` [V, H]^T + `bias` [V]) the largest probability and whether `labels` has it.

    Any float dtype (products run in it, sums in float32); the soft cap is applied after the scale. No gradient.
    """
    hidden, weight = autocast(hidden.detach(), weight.detach())
    bias = None if bias is None else bias.detach()
    probability = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
    size = max(1, CHUNK_BYTES // (4 * weight.size(0)))
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        logits = project(hidden[part], weight, logits_buffer(weight, len(hidden[part]))).float()
        if bias is not None:
            logits += bias.float()
        logits *= logit_scale
        if softcap is not None:
            logits = torch.tanh_(logits.div_(softcap)).mul_(softcap)
        highest, choice = logits.max(dim=1)
        probability[part] = torch.exp(highest - torch.logsumexp(logits, dim=1))
        right[part] = choice == labels[part]
    return Confidence(probability, right)
