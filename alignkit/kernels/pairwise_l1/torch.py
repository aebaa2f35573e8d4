"""The operations of `pairwise_l1` that are no products, in PyTorch."""

import torch
from torch import Tensor

from alignkit.kernels.pairwise_l1.records import Engine
from alignkit.kernels.upstream import l1_backward


def sums(q: Tensor, p: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """See `Engine.sums`. One student row at a time against the block of the teacher's, which stays in the cache:
    `torch.cdist` makes the same distances slower, and no R."""
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


ENGINE = Engine(sums, sign_sums)
