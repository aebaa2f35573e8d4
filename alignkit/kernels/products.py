"""Matmuls with a head's weight, sums of matmuls, and reusable buffers."""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

AMX_VARIABLE = "ALIGNKIT_AMX"
PART_MULTIPLE = 16
"""Each part of a split matmul has a multiple of this many columns, so that it starts aligned."""


def project(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Compute `out` [c, v] = `hidden` [c, H] `weight` [v, H]^T and return it.

    If `out` has a wider dtype than the operands, a GPU writes unrounded sums. A CPU rounds them to the operands'
    dtype first.
    """
    if out.dtype == weight.dtype:
        return torch.mm(hidden, weight.T, out=out)
    if out.is_cuda:
        return torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    return out.copy_(hidden @ weight.T)


def states(gradient: Tensor, weight: Tensor, out: Tensor, splits: int = 1) -> Tensor:
    """Compute `out` [c, H] = `gradient` [c, V] `weight` [V, H] in `splits` parallel parts along V, and return it.

    The parts are summed in float32, or in the operands' dtype if that is wider. Columns left over are added last.
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
    """The batched matmul `left` [S, c, v] `right` [S, v, H], at least in float32."""
    dtype = torch.promote_types(left.dtype, torch.float32)
    if left.is_cuda and dtype != left.dtype:
        return torch.bmm(left, right, out_dtype=dtype)
    return torch.bmm(left.to(dtype), right.to(dtype))


def add_product(
    total: Tensor, a: Tensor, b: Tensor, *, dtype: torch.dtype | None = None, fresh: bool = False
) -> None:
    """Compute `total` += `a` `b`, or `total` = `a` `b` with `fresh`, with sums in the dtype of `total`.

    A GPU multiplies the factors in `dtype`, by default the dtype of `b`. A CPU multiplies in the dtype of `total`,
    unless that is float32, `dtype` is bfloat16, and it `multiplies_bfloat16`.
    """
    beta, low = 0 if fresh else 1, dtype or b.dtype
    if total.is_cuda and low != total.dtype:
        torch.addmm(total, a.to(low), b.to(low), beta=beta, out_dtype=total.dtype, out=total)
        return
    low_on_cpu = total.dtype == torch.float32 and low == torch.bfloat16 and multiplies_bfloat16()
    with bfloat16_products() if low_on_cpu else nullcontext():
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=beta, out=total)


def multiplies_bfloat16() -> bool:
    """Return whether the CPU has AMX, whose bfloat16 products are faster than float32's, or what ALIGNKIT_AMX says.

    It is a property of the processor, not a measured time, so that a run that resumes there computes the same.
    Raises ValueError for another value.
    """
    asked = os.environ.get(AMX_VARIABLE) or "auto"
    if asked not in {"auto", "on", "off"}:
        raise ValueError(f"{AMX_VARIABLE} must be auto, on or off, found {asked!r}")
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False)) if asked == "auto" else asked == "on"


def bfloat16_products() -> AbstractContextManager[None]:
    """Let float32 matmuls on a CPU round their operands to bfloat16 where that is faster; sums stay float32.

    oneDNN takes AMX for it. A processor without such instructions multiplies in float32 all the same.
    """
    return _float32_matmuls("bf16", torch.backends.mkldnn.matmul)


def float32_products() -> AbstractContextManager[None]:
    """Multiply float32 in float32, whatever precision the process allows for matmuls."""
    return _float32_matmuls("ieee", torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)


@contextmanager
def _float32_matmuls(precision: str, *backends: Any) -> Iterator[None]:
    """Set the precision of the backends' float32 matmuls, and set it back."""
    before = [matmul.fp32_precision for matmul in backends]
    for matmul in backends:
        matmul.fp32_precision = precision
    try:
        yield
    finally:
        for matmul, own in zip(backends, before, strict=True):
            matmul.fp32_precision = own


def spans(count: int, largest: int) -> list[slice]:
    """Cover [0, count) by as few slices of at most `largest` as possible. All but the last have the same length."""
    size = math.ceil(count / max(1, math.ceil(count / max(1, largest)))) or 1
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class Scratch:
    """Buffers that are reused for every tile. New ones would cost page faults, which take much time on a CPU."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._device, self._dtype = device, dtype
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """Return an uninitialised contiguous [rows, columns]. It overwrites the last buffer taken under `name`."""
        size = rows * columns
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = torch.empty(size, device=self._device, dtype=self._dtype)
        return self._flat[name][:size].view(rows, columns)
