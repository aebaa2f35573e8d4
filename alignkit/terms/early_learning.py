"""Early-learning regularisation for noisy preferences (term `early_learning`)."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from alignkit.terms.base import Effect, Metrics, RowEffect, RowTerm, RowView, Seen, Setup, State

NEAREST = 1e-4
"""Distance that <t, P> keeps from 0 and 1, as in the authors' published code."""


class EarlyLearning(RowTerm):
    """Noisy labels that are not memorised: each pair is held to what the model believed of it in early passes.

    With P = (sigma(m), 1 - sigma(m)) for the margin m, every pair keeps t = memory t + (1 - memory) P, without
    gradient, and extra = weight ln(1 - <t, P>). It needs about three passes over the data before it acts.
    """

    type: Literal["early_learning"] = "early_learning"

    effect: ClassVar[Effect] = "extras"
    needs_rewards: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("belief",)
    paper: ClassVar[str] = "2007.00151"
    code_read: ClassVar[bool] = True
    fidelity: ClassVar[Literal["exact", "translation"]] = "exact"

    weight: float = Field(3.0, ge=0, le=100, description="weight of the extra loss")
    memory: float = Field(0.7, ge=0, lt=1, description="share of a pair's earlier beliefs that a visit keeps")
    corrected: bool = Field(
        False, description="divide a belief by what its visits have filled of it; for a weight of at most 1"
    )

    @model_validator(mode="after")
    def _gentle_when_corrected(self) -> Self:
        if self.corrected and self.weight > 1:
            raise ValueError(
                f"corrected: freezes the first impression at a weight above 1, found weight {self.weight:g}"
            )
        return self

    def begin(self, setup: Setup) -> State:
        """Start with no beliefs: zeros [rows, 2], and no visits [rows]."""
        return {"beliefs": torch.zeros(setup.rows, 2), "visits": torch.zeros(setup.rows, dtype=torch.int32)}

    def apply(self, view: RowView, state: State) -> RowEffect:
        """The loss against each pair's own belief, which this visit has already moved."""
        believed = torch.sigmoid(view.margins)
        now = torch.stack([believed, torch.sigmoid(-view.margins)], dim=1)
        kept = self._moved(state["beliefs"][view.rows], now.detach().float())
        if self.corrected:
            visits = state["visits"][view.rows] + 1
            kept = kept / (1 - self.memory**visits)[:, None]
        agreement = (kept.to(now) * now).sum(dim=1).clamp(NEAREST, 1 - NEAREST)
        return RowEffect(extra=self.weight * torch.log1p(-agreement), record={"belief": believed})

    def _moved(self, beliefs: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        return self.memory * beliefs + (1 - self.memory) * now

    def fold(self, state: State, seen: Seen) -> tuple[State, Metrics]:
        """Move the beliefs of the step's pairs, and count their visits."""
        beliefs, visits = state["beliefs"].clone(), state["visits"].clone()
        chosen = seen.record["belief"].float()
        beliefs[seen.rows] = self._moved(beliefs[seen.rows], torch.stack([chosen, 1 - chosen], dim=1))
        visits[seen.rows] += 1
        doubted = (beliefs[seen.rows, 1] > beliefs[seen.rows, 0]).double().mean()
        return {"beliefs": beliefs, "visits": visits}, {"early_learning/doubted": (float(doubted), 1.0)}
