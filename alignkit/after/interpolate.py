"""Interpolation with the model before training: a strength knob after training (WiSE-FT; BANG, arXiv 2309.17230)."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from alignkit.adapter_sections import LoraSection
from alignkit.after.adapter import Adapter
from alignkit.after.base import AfterStep, Finished

CANDIDATES = (0.25, 0.5, 0.75, 1.0)
"""Amounts that `auto` evaluates."""
LARGEST = 1.5
MOST_PUBLISHED = 8


def _different(amounts: list[float]) -> list[float]:
    names = [f"{amount:g}" for amount in amounts]
    if len(set(names)) < len(names):
        raise ValueError(f"expected each amount once, found {', '.join(names)}")
    return amounts


class Interpolate(AfterStep):
    """Interpolate the weights with those before training: theta = (1 - amount) start + amount trained."""

    type: Literal["interpolate"] = "interpolate"
    amount: Literal["auto"] | Annotated[float, Field(gt=0, le=LARGEST)] = Field(
        0.5,
        description="share of the trained weights; above 1 it goes beyond them; auto: the best of .25, .5, .75 and 1 "
        "by held-out loss that the collapse guard accepts",
    )
    publish: Annotated[list[Annotated[float, Field(gt=0, le=LARGEST)]], AfterValidator(_different)] = Field(
        default_factory=list,
        max_length=MOST_PUBLISHED,
        description="further amounts whose models are saved beside the result, such as [.25, .75]",
    )

    def apply(self, run: Finished) -> None:
        """Replace the run's weights by the interpolated ones, and save those of `publish` beside them."""
        at = _Interpolation(run)
        for amount in self.publish:
            at.put(amount)
            run.keep(f"amount-{amount:g}", f"Interpolated with the start: {amount:g} of the trained weights.")
        if self.amount != "auto":
            at.put(self.amount)
            if self.amount > 1:
                run.report(f"Interpolated beyond the trained weights, to {self.amount:g}", warn=True)
            else:
                run.report(f"Interpolated with the start: {self.amount:g} of the trained weights")
            return
        losses = {}
        for amount in CANDIDATES:
            at.put(amount)
            if not run.faults():
                losses[amount] = run.loss()
        best = min(losses, key=lambda amount: losses[amount], default=CANDIDATES[0])
        at.put(best)
        found = ", ".join(f"{amount:g}: {loss:.4g}" for amount, loss in losses.items()) or "all had collapsed"
        run.report(
            f"Interpolated with the start: {best:g} of the trained weights (held-out loss {found})",
            warn=not losses,
        )

    def refusals(self, lora: LoraSection | None, has_validation: bool) -> Iterator[str]:  # noqa: ARG002, FBT001
        """Yield a reason if `auto` has nothing to evaluate on."""
        if self.amount == "auto" and not has_validation:
            yield "amount: auto needs data.validation"


class _Interpolation:
    """Puts interpolated weights into a run, always from the same trained ones."""

    def __init__(self, run: Finished) -> None:
        self._run, self._adapter = run, run.adapter
        self._ends = None if self._adapter is not None else (run.start_weights(), run.weights())

    def put(self, amount: float) -> None:
        if self._adapter is not None:
            self._run.put_adapter(interpolated(self._adapter, self._run.start_adapter, amount))
        elif self._ends is not None:
            self._run.put_weights(interpolated_weights(*self._ends, amount))


def interpolated(trained: Adapter, start: Adapter | None, amount: float) -> Adapter:
    """The adapter whose delta W is (1 - amount) of the start's plus `amount` of the trained one's, exactly.

    Over the base model (`start` None) the B are scaled. Otherwise the rank is the sum of both ranks. Amount 1 is the
    trained adapter unchanged.
    """
    if amount == 1:
        return trained
    scaled = trained.scaled(amount)
    return scaled if start is None else scaled.plus(start.scaled(1 - amount))


def interpolated_weights(
    start: dict[str, Tensor], trained: dict[str, Tensor], amount: float
) -> dict[str, Tensor]:
    """(1 - amount) start + amount trained of each weight, computed in float32 or wider. 0 and 1 are exact."""
    return {name: _between(start[name], weight, amount) for name, weight in trained.items()}


def _between(start: Tensor, trained: Tensor, amount: float) -> Tensor:
    wide = torch.promote_types(trained.dtype, torch.float32)
    return torch.lerp(start.to(trained.device, wide), trained.to(wide), amount).to(trained.dtype)
