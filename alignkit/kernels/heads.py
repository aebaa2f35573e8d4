"""What the fused heads share: checks, autocast, logits from a product, float32 sums of products, bounded buffers."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).min / 4
"""Stands for -inf among logits, so that 0 * -inf never arises; NaN stays NaN."""


class Head(NamedTuple):
    """How a product h W^T + b becomes logits: scaled, soft-capped, divided by the temperature, in this order."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def factor(self) -> float:
        """d logit / d (h W^T + b), but for the soft cap's slope."""
        return self.scale / self.temperature

    def slope(self, logits: Tensor) -> Tensor:
        """The soft cap's slope tanh' where the logits are `logits`; 1 without a soft cap."""
        if self.softcap is None:
            return torch.ones_like(logits)
        return 1 - (logits * (self.temperature / self.softcap)).square()


def check_head(hidden: Tensor, weight: Tensor, temperature: float) -> None:
    """Raises ValueError unless `hidden` is [N, H], `weight` [V, H] and the temperature positive."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1):
        raise ValueError(
            f"expected hidden [N, H] and weight [V, H], found {tuple(hidden.shape)}, {tuple(weight.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, found {temperature}")


def autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype in which a linear layer would multiply them here."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)


def trains(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked for; inside an autograd function's forward this can no longer be seen."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def gathered(*parameters: Tensor | None) -> AbstractContextManager[Any]:
    """A context within which parameters that ZeRO-3 partitioned are whole.

    A head is called in one (`model_head`), which is left before the backward: that must enter its own.
    """
    if not any(hasattr(parameter, "ds_status") for parameter in parameters):
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(*parameters)


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, out: Tensor) -> Tensor | None:
    """Write float32 logits of `hidden` [c, H] under `weight` [v, H] into `out` [c, v].

    Returns the soft cap's slope tanh' [c, v], None without a soft cap.
    """
    if hidden.dtype == torch.float32:
        torch.mm(hidden, weight.T, out=out)
    else:
        out.copy_(hidden @ weight.T)
    if bias is not None:
        out += bias
    return logits_(out, head)


def logits_(x: Tensor, head: Head) -> Tensor | None:
    """Turn h W^T + b, float32, into logits in place; returns the soft cap's slope, None without a soft cap."""
    slope = None
    if head.softcap is None:
        if head.factor != 1.0:
            x *= head.factor
    else:
        torch.tanh_(x.mul_(head.scale / head.softcap))
        slope = torch.addcmul(x.new_ones(()), x, x, value=-1)
        x *= head.softcap / head.temperature
    x.clamp_(min=SMALLEST)
    return slope


def add_product(total: Tensor, a: Tensor, b: Tensor, *, dtype: torch.dtype, fresh: bool = False) -> None:
    """`total` (float32) += `a` `b`, or = where `fresh`; the sum is float32 even where `dtype`, the products', is not.

    On GPUs bfloat16 factors are multiplied as such; elsewhere low precision buys nothing worth its rounding.
    """
    beta = 0 if fresh else 1
    if dtype == torch.bfloat16 and total.is_cuda:
        torch.addmm(total, a.to(dtype), b.to(dtype), beta=beta, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, a.float(), b.float(), beta=beta, out=total)


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


class Shelf:
    """Tiles that one pass keeps for the next, within a budget; each leaves its memory when it is taken.

    They lie in slabs that the allocator gets from the system and gives back to it: smaller pieces would stay with
    the process, and the next pass could not write its results where they were.
    """

    SLAB_BYTES = 64 * 2**20

    def __init__(self, budget: int, device: torch.device) -> None:
        self._left, self._device = budget // 4, device
        self._slab = torch.empty(0, device=device)
        self._tiles: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def room(self, rows: int, columns: int) -> Tensor | None:
        """An uninitialised float32 [rows, columns], None when the budget is spent."""
        size = rows * columns
        if size > self._slab.numel():
            self._slab = torch.empty(min(self._left, max(size, self.SLAB_BYTES // 4)), device=self._device)
            self._left -= self._slab.numel()
            if size > self._slab.numel():
                return None
        tile, self._slab = self._slab[:size].view(rows, columns), self._slab[size:]
        return tile

    def put(self, row: int, column: int, tile: Tensor, reference: Tensor) -> None:
        """Keep the tile that begins at (row, column), and the numbers [rows] that belong to it."""
        self._tiles[row, column] = tile, reference

    def take(self, row: int, column: int) -> tuple[Tensor, Tensor] | None:
        """What was put there, once."""
        self._slab = self._slab[:0]
        return self._tiles.pop((row, column), None)
