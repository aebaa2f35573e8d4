"""Training of a small reward model on pairs with a term, as a trainer does it: apply, step, fold."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.terms import RowTerm, RowView, Seen, Setup


def fit(
    margins: Callable[[Tensor], Tensor],
    parameters: Iterable[Tensor],
    groups: Tensor,
    term: RowTerm | None,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 0.0,
    names: Sequence[str] = (),
    after_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Minimise softplus(-margin) with Adam in shuffled batches. `margins` maps row ids [b] to margins [b].

    groups: [rows] int64, ids of the rows' groups, which `names` names.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    rows_of = tuple(int((groups == at).sum()) for at in range(len(names)))
    state = {} if term is None else term.begin(Setup(len(groups), batch, tuple(names), rows_of, math.log(2)))
    for _ in range(epochs):
        order = torch.randperm(len(groups), generator=generator)
        for drawn in order.split(batch):
            ids = drawn.sort().values
            found = margins(ids)
            losses = F.softplus(-found)
            total = losses
            if term is not None:
                view = RowView(losses, ids, groups[ids], found, found / 2, -found / 2)
                effect = term.apply(view, state)
                total = losses if effect.weights is None else effect.weights * losses
                total = total if effect.extra is None else total + effect.extra
                record = {name: value.detach().double() for name, value in effect.record.items()}
                seen = Seen(ids, groups[ids], losses.detach().double(), found.detach().double(), record)
                state = term.fold(state, seen)[0]
            optimizer.zero_grad()
            total.mean().backward()
            optimizer.step()
        after_epoch()
