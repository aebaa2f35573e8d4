"""Per-item metrics of preference trainers: gathered over all processes, averaged over items, not over batches."""

from collections import defaultdict

import torch
from torch import Tensor


class ItemMetrics:
    """Values of single items, kept until they are logged.

    TRL averages batch means, so a short last batch of an evaluation weighs as much as a whole one; a held-out
    accuracy must count items.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._ratios: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def add(self, name: str, values: Tensor) -> None:
        """`values`: [n], already gathered over processes."""
        self._values[name].append(values.detach().float().cpu().reshape(-1))

    def add_ratio(self, name: str, numerator: float, denominator: float) -> None:
        """A mean over something else than items (tokens): sums are kept and divided when logged."""
        above, below = self._ratios[name]
        self._ratios[name] = (above + numerator, below + denominator)

    def take(self) -> dict[str, float]:
        """Item means, and the calibration error where a margin was recorded; empties the store."""
        items = {name: torch.cat(values) for name, values in self._values.items()}
        self._values.clear()
        ratios = {name: above / below for name, (above, below) in self._ratios.items() if below}
        self._ratios.clear()
        means = {name: float(values.mean()) for name, values in items.items() if values.numel()}
        if "rewards/margins" in items and items["rewards/margins"].numel():
            means["rewards/ece"] = bradley_terry_ece(items["rewards/margins"])
        return means | ratios


def bradley_terry_ece(margins: Tensor, bins: int = 10) -> float:
    """Expected calibration error of P = sigma(margin) as the probability that the label is right, in [0, 1].

    Confidence is max(P, 1 - P), right where the margin is positive; `bins` equal bins on [0, 1], the last one
    closed. margins: [n].
    """
    probability = torch.sigmoid(margins.double())
    confidence = torch.maximum(probability, 1 - probability)
    right = (margins > 0).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, index, right - confidence)
    return float(gap.abs().sum() / margins.numel())
