"""Trainer metrics, gathered over all processes and averaged over items or tokens instead of batches."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignkit.evaluate.opis import opis

CALIBRATION_BINS = 15
GROUP_OF_ITEM = "group"
"""Column of the ids of the items' groups, from which OPIS is made; -1 for none."""


class ItemMetrics:
    """A store of per-item values, kept until they are logged.

    TRL averages the means of batches, so that a short last batch weighs as much as a full one. A held-out accuracy
    must count items instead.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._ratios: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self._bins: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Record values [n], already gathered over processes."""
        self._values[name].append(values.detach().float().cpu().reshape(-1))

    def add_ratio(self, name: str, numerator: float, denominator: float) -> None:
        """Record the numerator and denominator of a mean over tokens, or over some of the items.

        Both are summed, and divided when logged.
        """
        above, below = self._ratios[name]
        self._ratios[name] = (above + numerator, below + denominator)

    def add_calibration(self, name: str, bins: Tensor) -> None:
        """Add bins [bins, 3] of `calibration_bins`, already summed over processes."""
        bins = bins.detach().double().cpu()
        self._bins[name] = self._bins[name] + bins if name in self._bins else bins

    def state(self) -> dict[str, Any]:
        """Return the content of the store, for `restore`."""
        values = {name: list(kept) for name, kept in self._values.items()}
        return {"values": values, "ratios": dict(self._ratios), "bins": dict(self._bins)}

    def restore(self, state: dict[str, Any]) -> None:
        """Replace the content of the store by a `state`."""
        self._values = defaultdict(list, state["values"])
        self._ratios = defaultdict(lambda: (0.0, 0.0), state["ratios"])
        self._bins = dict(state["bins"])

    def take(self) -> dict[str, float]:
        """Empty the store and return its means, and calibration errors if margins or bins were recorded."""
        items = {name: torch.cat(values) for name, values in self._values.items()}
        self._values.clear()
        ratios = {name: above / below for name, (above, below) in self._ratios.items() if below}
        self._ratios.clear()
        if {"rewards/chosen", "rewards/rejected"} <= ratios.keys():  # labelled rows, which are no pairs
            ratios["rewards/margins"] = ratios["rewards/chosen"] - ratios["rewards/rejected"]
        groups = items.pop(GROUP_OF_ITEM, None)
        means = {name: float(values.mean()) for name, values in items.items() if values.numel()}
        if groups is not None and len(groups.unique()) > 1:
            means["opis"] = opis(items["rewards/chosen"], items["rewards/rejected"], groups.tolist()).value
        if "rewards/margins" in items and items["rewards/margins"].numel():
            means["rewards/ece"] = bradley_terry_ece(items["rewards/margins"])
        errors = {name: calibration_error(bins) for name, bins in self._bins.items()}
        self._bins.clear()
        return means | ratios | errors


def record_items(
    accelerator: Any,
    items: ItemMetrics,
    columns: Mapping[str, Tensor],
    ratios: Mapping[str, tuple[Tensor, Tensor]],
    is_real: Tensor | None,
) -> None:
    """Record per-item values [n], and per-item (numerator, denominator) [n] of metrics that are means over tokens.

    Gathers them in one collective and drops padding rows (see `gather_rows`).
    """
    values = [*columns.values(), *(value for pair in ratios.values() for value in pair)]
    stacked = torch.stack([value.detach().float() for value in values], dim=1)
    gathered = gather_rows(accelerator, stacked, is_real)
    for name, column in zip(columns, gathered.unbind(dim=1), strict=False):
        items.add(name, column)
    sums = gathered[:, len(columns) :].double().sum(dim=0).view(-1, 2).tolist()
    for name, (above, below) in zip(ratios, sums, strict=True):
        items.add_ratio(name, above, below)


def gather_rows(accelerator: Any, rows: Tensor, is_real: Tensor | None) -> Tensor:
    """Gather rows [n, k] from all processes, without the padding rows of the last batch.

    In training `is_real` [n] is False for padding rows, since accelerate cannot tell: the Trainer fetches all batches
    of a step at once, after which accelerate takes each of them for the last. In an evaluation it is None, and
    accelerate knows the padding.
    """
    if is_real is None:
        gathered: Tensor = accelerator.gather_for_metrics(rows)
        return gathered
    flagged = accelerator.gather(torch.cat([rows, is_real.to(rows)[:, None]], dim=1))
    return flagged[flagged[:, -1] > 0, :-1]


def real_rows(accelerator: Any, count: int) -> int:
    """Return how many of this process's `count` rows of an evaluation batch are not padding rows."""
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return count
    return part_of_last_round(state.remainder, accelerator.process_index, count)


def part_of_last_round(remainder: int, rank: int, size: int) -> int:
    """Return how many of the last `remainder` rows process `rank` gets, if each process takes `size` in turn."""
    return min(max(remainder - rank * size, 0), size)


def bradley_terry_ece(margins: Tensor, bins: int = 10) -> float:
    """Compute the expected calibration error of P = sigma(margin) as the probability that the label is right.

    margins: [n]. The confidence is max(P, 1 - P); a prediction is right if the margin is positive. `bins` equal bins
    divide [0, 1]; the last one is closed. Returns a number in [0, 1].
    """
    probability = torch.sigmoid(margins.double())
    confidence = torch.maximum(probability, 1 - probability)
    one_group = torch.zeros_like(margins, dtype=torch.long)
    return calibration_error(calibration_bins(confidence, margins > 0, one_group, groups=1, bins=bins)[0])


def calibration_bins(
    confidence: Tensor, right: Tensor, group: Tensor, *, groups: int, bins: int = CALIBRATION_BINS
) -> Tensor:
    """Count predictions by confidence: [groups, bins, 3] float64 of (predictions, summed confidence, right ones).

    `confidence` [N] in [0, 1] is divided into equal bins; the last one is closed. `right` [N] is bool. `group` [N] is
    the index of each prediction's group, such as its sequence.
    """
    index = group * bins + (confidence.detach() * bins).long().clamp(max=bins - 1)
    columns = torch.stack([torch.ones_like(confidence), confidence.detach(), right], dim=1).double()
    flat = columns.new_zeros(groups * bins, 3).index_add(0, index, columns)
    return flat.view(groups, bins, 3)


def calibration_error(bins: Tensor) -> float:
    """Compute the expected calibration error: the count-weighted mean of |accuracy - confidence| of the bins.

    bins: [bins, 3] of `calibration_bins`. Returns a number in [0, 1], or NaN if the bins are empty.
    """
    count, confidence, right = bins.unbind(dim=-1)
    total = float(count.sum())
    return float((right - confidence).abs().sum()) / total if total else math.nan
