"""Per-item metrics of preference trainers: gathered over all processes, averaged over items, not over batches."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

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


class ItemLogging:
    """For a TRL trainer, before its base: gathers values of single items and logs their means.

    The trainer sets `_item_metrics = {"train": ItemMetrics(), "eval": ItemMetrics()}` first.
    """

    accelerator: Any
    model: Any
    _item_metrics: dict[str, ItemMetrics]
    _total_train_tokens: int

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _record(self, columns: Mapping[str, Tensor], ratios: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Values of items, [n] each, and (numerator, denominator) of what is a mean over tokens."""
        stacked = torch.stack([value.detach().float() for value in columns.values()], dim=1)
        gathered = self.accelerator.gather_for_metrics(stacked)  # one collective for all of them
        for name, values in zip(columns, gathered.unbind(dim=1), strict=True):
            self._item_metrics[self._mode].add(name, values)
        sums = torch.stack([value.detach().float() for pair in ratios.values() for value in pair])
        above_and_below = self.accelerator.reduce(sums).view(-1, 2).tolist()
        for name, (above, below) in zip(ratios, above_and_below, strict=True):
            self._item_metrics[self._mode].add_ratio(name, above, below)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the item means gathered since the last call, prefixed `eval_` in evaluation."""
        prefix = "eval_" if self._mode == "eval" else ""
        metrics = self._item_metrics[self._mode].take()
        if metrics:
            metrics["num_tokens"] = float(self._total_train_tokens)
        logs.update({f"{prefix}{name}": value for name, value in metrics.items()})
        super().log(logs, start_time)  # type: ignore[misc]


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
