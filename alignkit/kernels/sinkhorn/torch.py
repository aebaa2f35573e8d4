"""The PyTorch engine of `sinkhorn`, with a few operations per step."""

import torch
from torch import Tensor

from alignkit.kernels.sinkhorn.records import Engine


def potentials(scores: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """See `Engine.potentials`."""
    f: list[Tensor] = []
    g = [torch.zeros_like(scores[:, 0])]
    for _ in range(iterations):
        f.append((scores + g[-1][:, None]).logsumexp(dim=2).neg_())
        g.append((scores + f[-1][:, :, None]).logsumexp(dim=1).neg_())
    return torch.stack(f), torch.stack(g)


def pull_back(scores: Tensor, f: Tensor, g: Tensor, weighted: Tensor) -> Tensor:
    """See `Engine.pull_back`."""
    total, row, column = weighted.clone(), weighted.sum(dim=2), weighted.sum(dim=1)
    for step in reversed(range(len(f))):
        by_rows = scores + f[step, :, :, None]
        share = torch.exp(by_rows + g[step + 1, :, None]).mul_(column[:, None])
        total -= share
        row = row - share.sum(dim=2)
        share = by_rows.add_(g[step, :, None]).exp_().mul_(row[:, :, None])
        total -= share
        row, column = torch.zeros_like(row), share.sum(dim=1).neg_()
    return total


ENGINE = Engine(potentials, pull_back)
