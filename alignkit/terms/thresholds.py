"""Absolute reward thresholds (term `thresholds`)."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from alignkit.terms.base import Effect, Metrics, RowEffect, RowTerm, RowView, Seen, Setup, State


class Thresholds(RowTerm):
    """Levels for the rewards: the chosen answer's stays above one, the rejected answer's below another.

    extra = chosen_weight sum (m+ - r_w) / |H+| + rejected_weight sum (r_l - m-) / |H-|, over the hard sets
    H+ = {r_w <= m+} and H- = {r_l >= m-}. A pair's loss fixes only the difference of the rewards, not their level.
    The size of a hard set is the moving average of its share of the rows in the steps before.
    """

    type: Literal["thresholds"] = "thresholds"

    effect: ClassVar[Effect] = "extras"
    needs_rewards: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("low", "high")
    paper: ClassVar[str] = "2307.04047"

    chosen_floor: float = Field(
        0.0,
        ge=-1e4,
        le=1e4,
        description="m+, the reward that a chosen answer is to have; 0 is the reference's",
    )
    rejected_ceiling: float = Field(
        -1.0, ge=-1e4, le=1e4, description="m-, the reward that a rejected answer is not to exceed"
    )
    chosen_weight: float = Field(1.0, ge=0, le=1e4, description="weight of chosen answers below the floor")
    rejected_weight: float = Field(
        0.0, ge=0, le=1e4, description="weight of rejected answers above the ceiling"
    )
    rate: float = Field(0.1, gt=0, le=1, description="share of a step's rows in the moving averages")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.chosen_floor <= self.rejected_ceiling:
            raise ValueError(
                f"chosen_floor: expected more than rejected_ceiling {self.rejected_ceiling:g}, "
                f"found {self.chosen_floor:g}"
            )
        return self

    def begin(self, setup: Setup) -> State:
        """Start as if every row were hard. The least share is one row of a step."""
        return {
            "share": torch.ones(2, dtype=torch.float64),
            "least": torch.tensor(1 / max(setup.batch_rows, 1), dtype=torch.float64),
        }

    def apply(self, view: RowView, state: State) -> RowEffect:
        """Each row's excess over its level, divided by the share of rows that exceeded it before."""
        chosen, is_low = _excess(self.chosen_floor - view.chosen)
        rejected, is_high = _excess(view.rejected - self.rejected_ceiling)
        share = state["share"].clamp(min=state["least"]).to(chosen)
        extra = self.chosen_weight * chosen / share[0] + self.rejected_weight * rejected / share[1]
        return RowEffect(extra=extra, record={"low": is_low, "high": is_high})

    def fold(self, state: State, seen: Seen) -> tuple[State, Metrics]:
        """Move the shares of the hard sets by `rate`."""
        found = torch.stack([seen.record["low"].mean(), seen.record["high"].mean()])
        share = state["share"] + self.rate * (found - state["share"])
        low, high = found.tolist()
        metrics = {"thresholds/chosen_below": (low, 1.0), "thresholds/rejected_above": (high, 1.0)}
        return {**state, "share": share}, metrics


def _excess(over: Tensor) -> tuple[Tensor, Tensor]:
    """([B] positive part of `over`, with slope 1 at zero too; [B] whether it is >= 0)."""
    hard = over >= 0
    return torch.where(hard, over, torch.zeros_like(over)), hard.double()
