"""The PyTorch engine of `pairwise_l1`: distances and sums of signs."""

import torch
from torch import Tensor

from alignkit.kernels.pairwise_l1.records import Engine
from alignkit.kernels.upstream import l1_backward


def sums(q: Tensor, p: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """See `Engine.sums`. Compares one student row at a time with the teacher's block, which stays in the cache.

    `torch.cdist` computes the same distances more slowly, and does not give R, which takes as long again.
    """
    found = {name: q.new_empty(q.size(0), p.size(0)) for name in names}
    difference, sign = torch.empty_like(p), torch.empty_like(p)
    for i, row in enumerate(q):
        torch.sub(row, p, out=difference)
        if "mass" in found:
            torch.sign(difference, out=sign)
            torch.mv(sign, row, out=found["mass"][i])
        torch.sum(difference.abs_(), dim=1, out=found["distance"][i])
    return found


def sign_sums(upstream: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """See `Engine.sign_sums`."""
    if not p.size(0):
        return torch.zeros_like(q)
    return l1_backward(upstream, q, p)


ENGINE = Engine(sums, sign_sums, makes_mass=False)
