"""Gradients and curvatures that agree between groups (term `align_groups`)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.terms.base import Effect, Metrics, RowEffect, RowTerm, RowView, Seen, State


class AlignGroups(RowTerm):
    """Preferences that do not lean on a cue of one group: gradients and curvatures of the groups are pulled together.

    The loss of a pair is seen as a logistic head softplus(-(a m + b)) at (a, b) = (1, 0), with gradient
    g = -sigma(-m) (m, 1) and curvature H = sigma(m) sigma(-m) [[m^2, m], [m, 1]]. With means over each group d, and
    over the groups without gradient, the penalty is the mean over groups of
    hessian_weight ||X_d - X||^2 + gradient_weight ||g_d - g||^2, with X = H g or X = H.
    """

    type: Literal["align_groups"] = "align_groups"

    effect: ClassVar[Effect] = "extras"
    needs_rewards: ClassVar[bool] = True
    micro_batch_matters: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("gradient_gap", "hessian_gap", "aligned")
    code_read: ClassVar[bool] = True
    paper: ClassVar[str] = "Understanding Hessian Alignment for Domain Generalization"

    hessian_weight: float = Field(10.0, ge=0, le=1e6, description="weight of the difference of curvatures")
    gradient_weight: float = Field(10.0, ge=0, le=1e6, description="weight of the difference of gradients")
    curvature: Literal["hessian_gradient", "hessian"] = Field(
        "hessian_gradient",
        description="how curvatures are compared: by the product H g, or by the whole matrix H",
    )

    @property
    def needs_groups(self) -> bool:
        """True: the term compares groups."""
        return True

    def apply(self, view: RowView, _state: State) -> RowEffect:
        """The penalty of each row's group. Zero, and counted, where a forward has rows of one group only."""
        present = view.groups.unique()
        none = torch.zeros_like(view.margins.detach())
        if len(present) < 2:
            return RowEffect(record={"gradient_gap": none, "hessian_gap": none, "aligned": none})
        gradients, curvatures = head_moments(view.margins)
        members = (view.groups[None, :] == present[:, None]).to(view.margins)
        shares = members / members.sum(dim=1, keepdim=True)
        gradient = shares @ gradients
        hessian = (shares @ curvatures.flatten(1)).view(-1, 2, 2)
        compared = (
            (hessian @ gradient[:, :, None])[..., 0] if self.curvature == "hessian_gradient" else hessian
        )
        gradient_gap, hessian_gap = _gaps(gradient), _gaps(compared.flatten(1))
        penalty = self.hessian_weight * hessian_gap + self.gradient_weight * gradient_gap
        # a row's part is such that the mean over the forward's rows is the mean over groups
        parts = shares.T * (len(view.rows) / len(present))
        record = {
            "gradient_gap": (parts @ gradient_gap).detach(),
            "hessian_gap": (parts @ hessian_gap).detach(),
            "aligned": torch.ones_like(none),
        }
        return RowEffect(extra=parts @ penalty, record=record)

    def fold(self, state: State, seen: Seen) -> tuple[State, Metrics]:
        """Report the gaps, and the share of rows whose forward had a single group."""
        rows, aligned = float(len(seen.rows)), float(seen.record["aligned"].sum())
        return state, {
            "groups/gradient_gap": (float(seen.record["gradient_gap"].sum()), aligned),
            "groups/hessian_gap": (float(seen.record["hessian_gap"].sum()), aligned),
            "groups/alone": (rows - aligned, rows),
        }


def head_moments(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gradients [B, 2], Hessians [B, 2, 2]) of softplus(-(a m + b)) by (a, b) at (1, 0)."""
    wrong = torch.sigmoid(-margins)
    inputs = torch.stack([margins, torch.ones_like(margins)], dim=1)
    curvature = wrong * torch.sigmoid(margins)
    return -wrong[:, None] * inputs, curvature[:, None, None] * inputs[:, :, None] * inputs[:, None, :]


def _gaps(values: Tensor) -> Tensor:
    """[D], squared distances of the groups' values [D, k] from their mean, which gets no gradient."""
    return (values - values.mean(dim=0).detach()).square().sum(dim=1)
