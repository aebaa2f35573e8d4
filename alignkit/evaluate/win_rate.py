"""Win rates of one model's answers over another's, with their uncertainty."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["win", "tie", "loss", "invalid"]
Z = 1.959963984540054
"""Standard score of a two-sided 95% interval."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """Outcomes counted. `rate` is the share of wins among valid outcomes; a tie counts half. None without any."""

    wins: int
    ties: int
    losses: int
    invalid: int
    rate: float | None
    low: float | None
    high: float | None
    """Bounds of the rate's 95% interval (Wilson 1927), which ties make wider than it need be."""


def win_rate(outcomes: Iterable[Outcome]) -> WinRate:
    """Count outcomes and compute their rate and its interval."""
    found = list(outcomes)
    wins, ties, losses, invalid = (found.count(kind) for kind in ("win", "tie", "loss", "invalid"))
    valid = wins + ties + losses
    if not valid:
        return WinRate(wins, ties, losses, invalid, None, None, None)
    rate = (wins + ties / 2) / valid
    return WinRate(wins, ties, losses, invalid, rate, *wilson(rate, valid))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a `share` of `count` trials: (low, high), both from 0 to 1."""
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    middle, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def of_scores(scores: Sequence[float], others: Sequence[float]) -> list[Outcome]:
    """The outcome of each pair of scores: the higher one wins. A score that is not finite makes it invalid."""
    return [_of(mine, other) for mine, other in zip(scores, others, strict=True)]


def _of(mine: float, other: float) -> Outcome:
    if not (math.isfinite(mine) and math.isfinite(other)):
        return "invalid"
    if mine == other:
        return "tie"
    return "win" if mine > other else "loss"
