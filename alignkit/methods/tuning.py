"""Which options of a pair method a run can tune by itself, and the scale on which each one moves."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from alignkit.adapter_sections import LoraSection, TuneSection
from alignkit.errors import FieldIssue, nearest
from alignkit.methods.base import Method
from alignkit.methods.preference import PairMethod

UNIT = 1.0
"""Width of a range up to which an option moves on a logit scale; wider ones are scales, which move by factors."""
INSET = 0.01
"""Share of a range that a value keeps from an excluded bound."""
STRETCH = 0.05
"""Share of a range by which the logit scale reaches beyond it, so that a bound itself is at a finite place."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An option's value as a function of its deviation from the start on an unbounded scale.

    Logarithmic: start e^d, clamped. Logit: a sigmoid stretched beyond the range, clamped. Both are exactly the start
    at d = 0.
    """

    name: str
    start: float
    low: float
    high: float
    is_logit: bool

    def value(self, deviations: Tensor) -> Tensor:
        """Values of the same shape as the deviations, within the bounds."""
        if not self.is_logit:
            return (self.start * deviations.exp()).clamp(self.low, self.high)
        edge = STRETCH * (self.high - self.low)
        wide = self.high - self.low + 2 * edge
        at = (self.start - self.low + edge) / wide
        place = math.log(at / (1 - at))
        moved = torch.sigmoid(place + deviations) - torch.sigmoid(torch.full_like(deviations, place))
        return (self.start + wide * moved).clamp(self.low, self.high)


def continuous(method: type[Method]) -> list[str]:
    """Names of the method's options that are floats with a lower and an upper bound."""
    return [
        name
        for name, field in method.own_options().items()
        if field.annotation is float and None not in _bounds(field.metadata)
    ]


def _bounds(metadata: Sequence[Any]) -> tuple[float | None, float | None]:
    low = next(
        (mark.ge if isinstance(mark, Ge) else mark.gt for mark in metadata if isinstance(mark, Ge | Gt)), None
    )
    high = next(
        (mark.le if isinstance(mark, Le) else mark.lt for mark in metadata if isinstance(mark, Le | Lt)), None
    )
    return low, high  # type: ignore[return-value]  # numbers, for an option that is a float


def scale_of(method: PairMethod, name: str) -> Scale:
    """The scale of one of the method's `continuous` options, from its declared bounds and its value."""
    metadata = type(method).model_fields[name].metadata
    low, high = (float(bound or 0) for bound in _bounds(metadata))
    inset = INSET * (high - low) if high - low <= UNIT else 0.0
    below = low + inset * any(isinstance(mark, Gt) for mark in metadata)
    above = high - inset * any(isinstance(mark, Lt) for mark in metadata)
    start = float(getattr(method, name))
    is_logit = high - low <= UNIT
    return Scale(name, start, min(below, start), max(above, start), is_logit)


def with_values(method: PairMethod, values: dict[str, Tensor]) -> PairMethod:
    """A copy of the method whose options have a value for each row, [B]. Only `loss` may be called on it."""
    return method.model_copy(update=values)


def refusals(
    tune: TuneSection, method: Method, lora: LoraSection | None, *, has_validation: bool
) -> Iterator[FieldIssue]:
    """Yield an issue for each reason why this run cannot tune; paths are relative to `tune`."""
    if not isinstance(method, PairMethod):
        yield FieldIssue("", f"expected a method on preference pairs, found {method.type}")
        return
    if lora is None:
        yield FieldIssue("", "tuning needs lora, since the response to an option is an adapter; found null")
    elif lora.nested is not None:
        yield FieldIssue("", "expected without lora.nested, found both")
    if not has_validation:
        yield FieldIssue("", "tuning needs data.validation: the options move by the held-out loss")
    known = continuous(type(method))
    for at, name in enumerate(tune.options):
        if name not in known:
            names = ", ".join(known) or "it has none"
            message = f"expected a continuous option of {method.type}: {names}; found {name}"
            yield FieldIssue(f"options.{at}", message + nearest(name, known))
        elif (reason := _untunable(method, name)) is not None:
            yield FieldIssue(f"options.{at}", reason)


def _untunable(method: PairMethod, name: str) -> str | None:
    """Why an option cannot be tuned from its value; None if it can. Tries the loss on four pairs."""
    scale = scale_of(method, name)
    if not scale.is_logit and scale.start <= 0:
        return f"{name} moves by factors, so it must start above 0; found {scale.start:g}"
    values = scale.value(torch.tensor([0.0, 0.25, -0.25, 0.5]))
    if len(set(values.tolist())) < 2:
        return f"{name} is at its bound, where it cannot move; found {scale.start:g}"
    pairs = method.four_pairs(0.5)
    pairs = pairs._replace(chosen=pairs.chosen + torch.tensor([1.0, -2.0, 3.0, 0.5]))  # margins apart from 0
    try:
        together = with_values(method, {name: values}).loss(pairs).losses
        apart = torch.stack(
            [
                type(method).model_validate(method.model_dump() | {name: value}).loss(pairs).losses[at]
                for at, value in enumerate(values.tolist())
            ]
        )
    except Exception as error:
        return f"{method.type} cannot take a {name} for each row ({type(error).__name__}: {error})"
    if not torch.allclose(together, apart, rtol=1e-4, atol=1e-6):
        return (
            f"{method.type} cannot take a {name} for each row: its loss is another than for each value alone"
        )
    if torch.allclose(apart, method.loss(pairs).losses, rtol=1e-6, atol=0):
        return f"the loss of {method.type} does not depend on {name} here, so there is nothing to tune"
    return None
