"""OPIS: how unequally one threshold on rewards serves the groups of held-out pairs (after arXiv 2307.04047)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

THRESHOLDS = 101
FALSE_ACCEPTS = (0.10, 0.01)
"""Shares of all rejected answers above the lowest and the highest threshold."""


@dataclass(frozen=True, slots=True)
class Opis:
    """The inconsistency of a threshold between groups, and the curves that it is made from."""

    value: float
    """Mean over thresholds of the variance of the groups' utilities: 0 if one threshold serves all alike."""
    thresholds: Tensor
    """[T], rewards from the 90 % to the 99 % quantile of all rejected rewards."""
    utilities: dict[Any, Tensor]
    """Group -> [T], harmonic mean of the shares of chosen rewards accepted and of rejected rewards refused."""


def opis(chosen: Tensor, rejected: Tensor, groups: Sequence[Any]) -> Opis:
    """Compute OPIS of n held-out pairs.

    chosen, rejected: [n] rewards of the answers. groups: names or ids of the pairs' groups. An affine change of all
    rewards with a positive factor leaves the value. Raises ValueError without pairs, or for unequal lengths.
    """
    if not len(chosen) == len(rejected) == len(groups) > 0:
        raise ValueError(
            f"opis: expected as many chosen and rejected rewards as groups, and at least one, found "
            f"{len(chosen)}, {len(rejected)} and {len(groups)}"
        )
    chosen, rejected = chosen.double(), rejected.double()
    ends = torch.tensor([1 - share for share in FALSE_ACCEPTS], dtype=torch.float64, device=rejected.device)
    low, high = torch.quantile(rejected, ends)
    at = low + (high - low) * torch.linspace(0, 1, THRESHOLDS, dtype=torch.float64, device=rejected.device)
    utilities = {}
    for name in sorted(set(groups)):
        own = torch.tensor([group == name for group in groups], device=chosen.device)
        accepted = (chosen[own][None, :] >= at[:, None]).double().mean(dim=1)
        refused = (rejected[own][None, :] < at[:, None]).double().mean(dim=1)
        utilities[name] = 2 * accepted * refused / (accepted + refused).clamp(min=1e-300)
    table = torch.stack(list(utilities.values()))
    return Opis(float(table.var(dim=0, unbiased=False).mean()), at, utilities)
