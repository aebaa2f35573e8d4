"""The best evaluated step of a run, and when training stops early; both follow from the Trainer's log alone.

The log is part of every checkpoint, so a resumed run decides as an uninterrupted one does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.held_out_metrics import METRICS
from alignkit.run.progress import rename
from alignkit.sections import EarlyStoppingSection, TrainingSection

SOUND = "eval_answers/sound"
"""Name in the log of the collapse guard's verdict: 1, or 0 for a collapse."""


@dataclass(frozen=True, slots=True)
class BestStep:
    """A step and its value of the metric that steps are judged by."""

    step: int
    metric: str
    value: float

    def __str__(self) -> str:
        """The value and the step, for a person."""
        return f"{self.metric} {self.value:.4g} at step {self.step}"


def evaluated(log: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """The metric of each evaluated step after the first update; NaN where the answers had collapsed.

    `log` is `TrainerState.log_history`. Raises KeyError if an evaluation lacks the metric.
    """
    values: dict[int, float] = {}
    collapsed = set()
    for entry in log:
        if entry.get(SOUND) == 0.0:
            collapsed.add(entry["step"])
        if entry["step"] and "eval_loss" in entry:
            found = rename(dict(entry))
            value = found[metric]
            values[entry["step"]] = math.nan if value is None else value
    if not collapsed >= values.keys():  # if all have collapsed, the guard was told only to warn
        values = {step: math.nan if step in collapsed else value for step, value in values.items()}
    return values


def best_step(values: Mapping[int, float], metric: str) -> BestStep | None:
    """The earliest step with the best finite value; None if there is none."""
    best: BestStep | None = None
    for step, value in sorted(values.items()):
        if math.isfinite(value) and (best is None or METRICS[metric].gain(value, best.value) > 0):
            best = BestStep(step, metric, value)
    return best


def without_gain(values: Mapping[int, float], metric: str, min_gain: float) -> int:
    """The number of last evaluations since the last one that was better by more than `min_gain`."""
    reference, count = math.nan, 0
    for _, value in sorted(values.items()):
        first = math.isnan(reference) and math.isfinite(value)
        if first or METRICS[metric].gain(value, reference) > min_gain:
            reference, count = value, 0
        else:
            count += 1
    return count


def stops(values: Mapping[int, float], training: TrainingSection) -> bool:
    """Whether early stopping ends training after these evaluations."""
    options: EarlyStoppingSection | None = training.early_stopping
    if options is None:
        return False
    return without_gain(values, training.best_metric, options.min_gain) >= options.patience
