"""The points of a sweep: which options vary, over which values, and how weak runs are stopped.

sweep:
  method.beta: [0.05, 0.1, 0.5]
  method.divergence: [reverse_kl, js_divergence]
  halving: {metric: valid_rewards_margins, goal: max, rungs: [50, 100]}
"""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from alignkit.errors import FieldIssue, RecipeError
from alignkit.schema import Section, field_issues

MOST_POINTS = 256
"""Points of a sweep. More would be a mistake: a sweep of four options with four values each has 256."""
HALVING = "halving"
FIXED = ("output_dir", "data.token_folder", "training.reference_folder", "training.pause_at")
"""Options that a sweep sets itself."""
SCHEDULES = ("training.max_steps", "training.epochs", "data.train", "data.validation")
"""Options under which the metrics of two runs at one step cannot be compared."""


TABLE_METRICS = (
    "valid_loss",
    "train_loss",
    "valid_rewards_margins",
    "valid_rewards_accuracies",
    "valid_answers_kl",
    "valid_kl",
)
"""Metrics of the table, where a run reports them, beside the halving's."""


class Halving(Section):
    """Successive halving: at each rung, a share of the runs goes on and the others stop."""

    metric: str = Field(
        min_length=1, max_length=120, description="a metric of the runs' events, such as valid_loss"
    )
    goal: Literal["max", "min"] = Field(
        "max", description="whether the largest or the smallest value is best"
    )
    rungs: list[int] = Field(
        min_length=1, max_length=16, description="steps at which runs are compared, ascending"
    )
    keep: float = Field(0.5, gt=0, lt=1, description="share of the runs that goes on, at least one")

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, rungs: list[int]) -> list[int]:
        if rungs[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(rungs)):
            raise ValueError(f"expected ascending steps from 1, found {rungs}")
        return rungs

    def best_first(self, values: Mapping[str, float]) -> list[str]:
        """Names by value, the best first; equal values by name."""
        sign = -1 if self.goal == "max" else 1
        return sorted(values, key=lambda name: (sign * values[name], name))

    def stopped(self, values: Mapping[str, float | None], rung: int) -> dict[str, str]:
        """Name -> why it stops, of the runs beyond the share that goes on. None is a run without the metric."""
        known = {name: value for name, value in values.items() if value is not None}
        ranked = self.best_first(known)
        kept = max(1, math.ceil(self.keep * len(values)))
        absent = {name: f"no {self.metric} up to step {rung}" for name in values if name not in known}
        return absent | {
            name: f"{self.metric} {known[name]:.4g} at step {rung}: place {place} of {len(ranked)}, of which {kept} "
            "went on"
            for place, name in enumerate(ranked, start=1)
            if place > kept
        }


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of values."""

    name: str
    values: dict[str, Any]
    """Dotted name of each option that varies -> its value here."""

    def label(self) -> str:
        """The values in a line, such as `beta 0.1, divergence reverse_kl`."""
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.values.items())


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """A sweep's options and their values."""

    options: dict[str, list[Any]]
    halving: Halving | None = None

    def points(self) -> list[Point]:
        """Every combination, the last option varying fastest."""
        combinations = itertools.product(*self.options.values())
        return [
            Point(f"point-{number:03}", dict(zip(self.options, values, strict=True)))
            for number, values in enumerate(combinations, start=1)
        ]

    def metrics(self) -> list[str]:
        """The metrics of the sweep's table: the halving's first, then TABLE_METRICS."""
        return list(dict.fromkeys([*([self.halving.metric] if self.halving else []), *TABLE_METRICS]))

    def as_json(self) -> dict[str, Any]:
        """The section as it was given, defaults included."""
        halving = {} if self.halving is None else {HALVING: self.halving.model_dump()}
        return {**self.options, **halving}


def sweep_of(given: object, prefix: str = "sweep", *, most: int = MOST_POINTS) -> SweepSpec:
    """Read a sweep section. Raises RecipeError, before any combination is made if there are more than `most`."""
    if not isinstance(given, Mapping):
        raise _refused(prefix, f"expected options and their values, found {type(given).__name__}")
    halving = _halving(given.get(HALVING), f"{prefix}.{HALVING}")
    options = {str(key): value for key, value in given.items() if key != HALVING}
    if not options:
        raise _refused(
            prefix, "expected at least one option and its values, such as method.beta: [0.05, 0.1]"
        )
    for key, values in options.items():
        if key in FIXED or (halving is not None and key in SCHEDULES):
            why = "the sweep sets it" if key in FIXED else "runs that are compared at a step must agree in it"
            raise _refused(f"{prefix}.{key}", f"cannot vary: {why}")
        if not isinstance(values, list) or not values:
            raise _refused(f"{prefix}.{key}", f"expected a list of values, found {_short(values)}")
        if len({json.dumps(value, sort_keys=True, default=str) for value in values}) < len(values):
            raise _refused(f"{prefix}.{key}", f"expected each value once, found {_short(values)}")
    count = math.prod(map(len, options.values()))
    if count > most:
        raise _refused(prefix, f"expected at most {most} points, found {count:,}")
    return SweepSpec(options, halving)


def _halving(given: object, prefix: str) -> Halving | None:
    if given is None:
        return None
    try:
        return Halving.model_validate(given)
    except ValidationError as error:
        issues = field_issues(error, prefix, siblings=lambda _: Halving.model_fields)
        raise RecipeError(issues) from error


def _refused(path: str, message: str) -> RecipeError:
    return RecipeError([FieldIssue(path, message)])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
