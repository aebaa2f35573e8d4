"""A linear language-model head: its operands, and the transform from matmul results to logits."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.kernels.upstream import whole_head


class LogitTransform(NamedTuple):
    """The transform of z = h W^T + b to a logit: softcap tanh(scale z / softcap) / temperature.

    Without a soft cap it is scale z / temperature. `head_triton` implements it for Triton's kernels.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def factor(self) -> float:
        """d logit / dz without the soft cap's slope."""
        return self.scale / self.temperature

    def __call__(self, products: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute logits from h W^T [N, V] and the bias [V], differentiable by autograd."""
        x = (products if bias is None else products + bias.to(products.dtype)) * self.scale
        x = x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)
        return x / self.temperature

    def apply_(
        self, x: Tensor, bias: Tensor | None = None, *, slope: bool = False, clamp: bool = False
    ) -> Tensor | None:
        """Turn h W^T [c, v], at least float32, into logits in place.

        With `slope` and a soft cap, returns the cap's slope, (d logit / dz) / `factor` [c, v], else None. `clamp`
        replaces -inf by a finite number far below any logit, which avoids 0 * -inf; NaN stays NaN.
        """
        if bias is not None:
            x += bias.to(x.dtype)
        steepness = None
        if self.softcap is not None:
            torch.tanh_(x.mul_(self.scale / self.softcap))
            if slope:
                steepness = torch.addcmul(x.new_ones(()), x, x, value=-1)
            x *= self.softcap / self.temperature
        elif self.factor != 1.0:
            x *= self.factor
        if clamp:
            x.clamp_(min=torch.finfo(x.dtype).min / 4)
        return steepness

    def slope_at(self, logits: Tensor) -> Tensor:
        """Return the soft cap's slope, (d logit / dz) / `factor`, at these logits; ones without a soft cap."""
        if self.softcap is None:
            return torch.ones_like(logits)
        return 1 - (logits * (self.temperature / self.softcap)).square()

    def as_numbers(self) -> tuple[float, float, float]:
        """Return (scale, soft cap or 0, temperature), as a custom op takes them; `of_numbers` reads them."""
        return float(self.scale), float(self.softcap or 0.0), float(self.temperature)

    @classmethod
    def of_numbers(cls, scale: float, softcap: float, temperature: float) -> "LogitTransform":
        """Return the transform of `as_numbers`."""
        return cls(scale, softcap or None, temperature)


class Operands(NamedTuple):
    """One model's head and the hidden states to multiply with it."""

    hidden: Tensor
    """Hidden states [N, H]."""
    weight: Tensor
    """Weight of the head [V, H]."""
    bias: Tensor | None
    """Bias of the head [V], or None."""
    transform: LogitTransform

    @property
    def train(self) -> bool:
        """Whether any operand needs a gradient. Valid only outside an autograd function."""
        return trains(self.hidden, self.weight, self.bias)


def unwritten_gradients(tensors: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor]:
    """Return empty tensors in the form of the gradients to the `needed` ones of `tensors`, for fake ops."""
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor, need in zip(tensors, needed, strict=True)
        if need and tensor is not None
    ]


def check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, side: str = "") -> None:
    """Raise ValueError unless `hidden` is [N, H], `weight` [V, H] and `bias` [V]; `side` prefixes their names."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1):
        raise ValueError(
            f"expected {side}hidden [rows, H] and {side}weight [V, H], "
            f"found {list(hidden.shape)} and {list(weight.shape)}"
        )
    if not weight.size(0):
        raise ValueError(f"expected {side}weight [V, H] with V >= 1, found {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{side}bias must have shape {[weight.size(0)]}, found {list(bias.shape)}")


def autocast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the dtype in which a linear layer would multiply them, with regard to autocast."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)


def first_columns(operands: Operands, vocabulary: int) -> Operands:
    """Return the operands, cast by `autocast`, with only the first `vocabulary` rows of weight and bias."""
    hidden, weight, bias, transform = operands
    if weight.size(0) > vocabulary:  # else no slice: its backward would copy the gradient
        weight, bias = weight[:vocabulary], None if bias is None else bias[:vocabulary]
    return Operands(*autocast(hidden, weight), bias, transform)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of softmax and sums: float32, or float64 for float64 input."""
    return torch.promote_types(weight.dtype, torch.float32)


def trains(*tensors: Tensor | None) -> bool:
    """Return whether any tensor needs a gradient. Call it outside an autograd function, where this is still known."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def gathered(*parameters: Tensor | None) -> AbstractContextManager[Any]:
    """Return a context in which parameters partitioned by ZeRO-3 are gathered.

    The context of the model's forward ends before the backward, so the backward must enter its own.
    """
    if not any(hasattr(parameter, "ds_status") for parameter in parameters):
        return nullcontext()
    return whole_head(*parameters)
