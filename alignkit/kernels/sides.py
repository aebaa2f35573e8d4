"""What heads over two models share: each model's operands, and products in the precision that both sides need."""

from typing import NamedTuple

import torch
from torch import Tensor

from alignkit.kernels.heads import Head


class Side(NamedTuple):
    """One model's operands: hidden [N, H], weight [V, H], bias [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    head: Head


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What softmax and sums run in: float32, or float64 for float64 input."""
    return torch.promote_types(weight.dtype, torch.float32)


def logits_buffer(weight: Tensor, rows: int) -> Tensor:
    """Room for the logits of `rows` tokens. A GPU's products leave their float32 sums unrounded; a CPU's round them
    to the dtype of the operands."""
    return weight.new_empty(
        rows, weight.size(0), dtype=compute_dtype(weight) if weight.is_cuda else weight.dtype
    )


def project(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """`out` = hidden weight^T, for an `out` of `logits_buffer`."""
    if out.dtype != weight.dtype:
        return torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    return torch.mm(hidden, weight.T, out=out)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total` += left right, without rounding the product to the operands' dtype first."""
    if total.dtype != left.dtype and total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, left.to(total.dtype), right.to(total.dtype), out=total)
