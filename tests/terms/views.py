"""Rows for tests of terms."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.terms import RowTerm, RowView, Seen, Setup


def setup(
    rows: int = 8, groups: Sequence[str] = (), start_loss: float | None = None, batch: int = 8
) -> Setup:
    """A run of `rows` rows, evenly over the groups."""
    return Setup(rows, batch, tuple(groups), tuple(rows // len(groups) for _ in groups), start_loss)


def view(
    losses: Tensor,
    *,
    groups: Sequence[int] | None = None,
    chosen: Tensor | None = None,
    rejected: Tensor | None = None,
) -> RowView:
    """Rows 0, 1, … with these losses; rewards are zero unless given."""
    none = torch.zeros_like(losses)
    chosen, rejected = none if chosen is None else chosen, none if rejected is None else rejected
    ids = torch.arange(len(losses))
    group = torch.full_like(ids, -1) if groups is None else torch.tensor(groups)
    return RowView(losses, ids, group, chosen - rejected, chosen, rejected)


def step(term: RowTerm, state: Mapping[str, Tensor], rows: RowView) -> tuple[dict[str, Tensor], RowView]:
    """One optimizer step of these rows alone: the state after it."""
    effect = term.apply(rows, dict(state))
    record = {name: value.detach().double() for name, value in effect.record.items()}
    seen = Seen(rows.rows, rows.groups, rows.losses.detach().double(), rows.margins.detach().double(), record)
    return term.fold(dict(state), seen)[0], rows
