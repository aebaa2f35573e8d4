"""Log-odds that stay accurate for probabilities near 1."""

import torch
from torch import Tensor

_LEAST = torch.finfo(torch.float32).tiny


def log_odds(logp: Tensor) -> Tensor:
    """Compute log(p / (1 - p)) from log p <= 0, elementwise. At p = 1 the result is large and finite.

    Stable at both ends: 1 - p is computed as -expm1(log p), which keeps its precision as p approaches 1.
    """
    return logp - torch.log((-torch.expm1(logp)).clamp(min=_LEAST))
