"""Products with a head's weight, sums of them, and the buffers they are written to."""

import math

import torch
from torch import Tensor

PART_MULTIPLE = 16
"""Columns of a part of a split product are a multiple of this, so that each begins aligned."""


def project(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """`out` [c, v] = `hidden` [c, H] `weight` [v, H]^T.

    Where `out` has a wider dtype than the operands, a GPU writes its sums unrounded; a CPU rounds them to the
    operands' dtype first.
    """
    if out.dtype == weight.dtype:
        return torch.mm(hidden, weight.T, out=out)
    if out.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    return out.copy_(hidden @ weight.T)


def states(gradient: Tensor, weight: Tensor, out: Tensor, splits: int = 1) -> Tensor:
    """`out` [c, H] = `gradient` [c, V] `weight` [V, H], the long V cut into `splits` parts that run side by side.

    The parts are summed in float32, or in the operands' dtype if that is wider; columns that no part has follow.
    """
    columns = weight.size(0) // splits // PART_MULTIPLE * PART_MULTIPLE
    if splits == 1 or not columns:
        return torch.mm(gradient, weight, out=out)
    whole = splits * columns
    left = gradient[:, :whole].unflatten(1, (splits, columns)).transpose(0, 1)
    total = _batched(left, weight[:whole].unflatten(0, (splits, columns))).sum(dim=0)
    if whole < weight.size(0):
        add_product(total, gradient[:, whole:], weight[whole:])
    return out.copy_(total)


def _batched(left: Tensor, right: Tensor) -> Tensor:
    """`left` [S, c, v] `right` [S, v, H], at least float32."""
    dtype = torch.promote_types(left.dtype, torch.float32)
    if left.is_cuda and dtype != left.dtype:
        return torch.bmm(left, right, out_dtype=dtype)
    return torch.bmm(left.to(dtype), right.to(dtype))


def add_product(
    total: Tensor, a: Tensor, b: Tensor, *, dtype: torch.dtype | None = None, fresh: bool = False
) -> None:
    """`total` += `a` `b`, or = with `fresh`; summed in the dtype of `total`, however low that of the factors.

    A GPU multiplies the factors in `dtype`, by default that of `b`; elsewhere low precision gains nothing.
    """
    beta, low = 0 if fresh else 1, dtype or b.dtype
    if total.is_cuda and low != total.dtype:
        torch.addmm(total, a.to(low), b.to(low), beta=beta, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=beta, out=total)


def spans(count: int, largest: int) -> list[slice]:
    """[0, count) in as few slices of at most `largest` as possible, of equal length but for the last."""
    size = math.ceil(count / max(1, math.ceil(count / max(1, largest)))) or 1
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class Scratch:
    """Buffers used again for every tile: fresh ones would cost page faults, on a CPU a good part of the time."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._device, self._dtype = device, dtype
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """An uninitialised contiguous [rows, columns]; what was last taken under `name` is lost."""
        size = rows * columns
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = torch.empty(size, device=self._device, dtype=self._dtype)
        return self._flat[name][:size].view(rows, columns)
