"""What fused heads share: how a model makes logits of products, and the products in the precision they need."""

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """A model's logits are softcap * tanh(scale * (h W^T + b) / softcap), or without the cap where it is None."""

    scale: float = 1.0
    softcap: float | None = None


class Side(NamedTuple):
    """One model's operands: hidden [N, H], weight [V, H], bias [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    head: Head


def autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in autocast's dtype where it is on, else in the weight's."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)


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
