"""Log-odds of probabilities near 1."""

import torch
from torch import Tensor

_LEAST = torch.finfo(torch.float32).tiny


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p <= 0, elementwise; at p = 1, where it is infinite, the value of the next number.

    Stable at both ends: 1 - p is -expm1(log p), which keeps its digits as p approaches 1.
    """
    return logp - torch.log((-torch.expm1(logp)).clamp(min=_LEAST))
