"""Products with a head's weight, sums of them, and the buffers they are written to."""

import math

import torch
from torch import Tensor


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
