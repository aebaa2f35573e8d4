"""A sweep's folder: sweep.json, a run's folder for each point, and the report.

sweep.json      {"sweep", "recipe", "stopped": {point: reason}}; what the runs did is read from their own folders
point-001/      a run, as `alignkit train` makes it (alignkit.run.folder), and given.yaml, the recipe it was given
tokens/         the rows' token ids, rendered once for all points (alignkit.data.token_store)
report.html     the table and the frontier (alignkit.sweep.report)
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import DataError, FieldIssue, RecipeError
from alignkit.recipe import Recipe
from alignkit.report.record import read_run
from alignkit.run.checkpoints import newest_first
from alignkit.run.folder import RunFolder, newest, write_json
from alignkit.sweep.points import Point, SweepSpec, sweep_of

TOKENS = "tokens"
REWARDS = ("valid_rewards_margins", "train_rewards_margins")
DISTANCES = ("valid_answers_kl", "valid_kl", "train_kl")
"""Metrics of a frontier's axes, the first that a run reports; the page's comparison uses the same ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a point: a line of the sweep's table."""

    point: Point
    status: str
    """waiting, unfinished, paused, stopped, succeeded or failed."""
    step: int
    metrics: dict[str, float]
    """Name -> last value."""
    reason: str | None
    """Why the run failed or was stopped."""
    job: str | None = None
    """The id of the point's job, in a sweep of a service."""

    def as_json(self) -> dict[str, Any]:
        """The row as `alignkit sweep --json` prints it."""
        return {
            "point": self.point.name,
            "values": self.point.values,
            "status": self.status,
            "step": self.step,
            "reason": self.reason,
            "metrics": self.metrics,
        }


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """The folder of a sweep and what is in it."""

    path: Path
    spec: SweepSpec
    recipe: dict[str, Any]
    """The recipe that all points share, without `sweep`."""

    @classmethod
    def open(cls, values: Mapping[str, Any]) -> "SweepFolder":
        """Open the sweep of a recipe with a `sweep` section, or make it. Every point's recipe is checked first.

        Raises RecipeError if a point is not possible, or if the folder holds another sweep.
        """
        shared = {key: value for key, value in values.items() if key != "sweep"}
        if "sweep" not in values:
            raise RecipeError([FieldIssue("sweep", "is required: the options that vary and their values")])
        spec = sweep_of(values["sweep"])
        given = shared.get("output_dir")
        if not isinstance(given, str) or not given:
            raise RecipeError([FieldIssue("output_dir", "is required: a folder for the sweep and its runs")])
        found = cls(Path(given), spec, shared)
        recipes = [found.recipe_of(point) for point in spec.points()]
        found.require_metric(recipes[0])
        found.make()
        return found

    @classmethod
    def read(cls, path: Path) -> "SweepFolder":
        """Read the sweep in `path`. Raises DataError if there is none."""
        try:
            state = json.loads((path / "sweep.json").read_text(encoding="utf-8"))
            return cls(path, sweep_of(state["sweep"]), state["recipe"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: expected the folder of a sweep, with sweep.json") from error

    def make(self) -> None:
        """Write sweep.json, unless this very sweep is there already. Raises RecipeError if another one is."""
        state = self._state()
        mine = json.loads(json.dumps({"sweep": self.spec.as_json(), "recipe": self.recipe}, default=str))
        if state and {key: state[key] for key in mine} != mine:
            changed = [key for key in mine if state[key] != mine[key]]
            raise RecipeError(
                [FieldIssue("output_dir", f"{self.path} holds a sweep with another {' and '.join(changed)}")]
            )
        if not state:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecipeError(
                    [FieldIssue("output_dir", f"cannot make {self.path}: {error.strerror}")]
                ) from error
            write_json(self.path / "sweep.json", mine | {"stopped": {}})

    def recipe_of(self, point: Point) -> Recipe:
        """The recipe of a point. Raises RecipeError, which names the option as `sweep` does."""
        values = copy.deepcopy(self.recipe)
        for key, value in point.values.items():
            _put(values, key, value)
        values["output_dir"] = str(self.path / point.name)
        if isinstance(values.get("data"), dict):
            values["data"].setdefault("token_folder", str(self.path / TOKENS))
        try:
            return Recipe.parse(values)
        except RecipeError as error:
            issues = [_as_the_sweep_names_it(issue, point) for issue in error.issues]
            raise RecipeError(issues) from error

    def require_metric(self, recipe: Recipe) -> None:
        """Raise RecipeError if the halving's metric is one of held-out rows and there are none."""
        halving = self.spec.halving
        if halving is not None and halving.metric.startswith("valid_") and recipe.data.validation is None:
            raise RecipeError(
                [
                    FieldIssue(
                        "sweep.halving.metric", f"{halving.metric} needs data.validation, which is not given"
                    )
                ]
            )

    def run_of(self, point: Point) -> RunFolder:
        """The folder of a point's run."""
        return RunFolder(newest(self.path / point.name))

    def write_given(self, point: Point) -> Path:
        """Write the recipe that a point's run is given, and return its path."""
        folder = self.path / point.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "given.yaml"
        path.write_text(self.recipe_of(point).to_yaml(), encoding="utf-8")
        return path

    def stop(self, point: Point, reason: str) -> None:
        """Note that a point's run goes no further."""
        state = self._state()
        state["stopped"][point.name] = reason
        write_json(self.path / "sweep.json", state)

    def fail(self, point: Point, reason: str) -> None:
        """Note that a point's run failed without writing so."""
        folder = self.run_of(point)
        if folder.read_result() is None or (folder.read_result() or {}).get("status") == "paused":
            write_json(folder.result, {"status": "failed", "error": {"code": "died", "message": reason}})

    def row(self, point: Point) -> Row:
        """What is known of a point."""
        run, stopped = self.run_of(point), self._state()["stopped"].get(point.name)
        if not run.recipe.exists():
            result = run.read_result() or {}
            return Row(point, str(result.get("status", "waiting")), 0, {}, stopped or _error(result))
        record = read_run(run)
        status = "stopped" if stopped and record.status in {"paused", "unfinished"} else record.status
        metrics = {name: values[max(values)] for name, values in record.series.items()}
        steps = [step for values in record.series.values() for step in values]
        finite = {name: value for name, value in metrics.items() if not math.isnan(value)}
        return Row(point, status, max(steps, default=0), finite, stopped or _error(record.result))

    def rows(self) -> list[Row]:
        """Every point, in order."""
        return [self.row(point) for point in self.spec.points()]

    def reached(self, point: Point) -> int:
        """The step of the last checkpoint of a point's run; 0 without any."""
        found = newest_first(self.run_of(point).checkpoints)
        return max((int(path.name.removeprefix("checkpoint-")) for path in found), default=0)

    def value_at(self, point: Point, metric: str, step: int) -> float | None:
        """The last finite value of a metric up to `step`; None if there is none."""
        run = self.run_of(point)
        if not run.recipe.exists():
            return None
        values = read_run(run).series.get(metric, {})
        known = [at for at, value in values.items() if at <= step and not math.isnan(value)]
        return values[max(known)] if known else None

    def reported(self) -> list[str]:
        """The names of all metrics that a run has reported."""
        return sorted({name for row in self.rows() for name in row.metrics})

    def _state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / "sweep.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / 'sweep.json'} cannot be read: {error}") from error
        return found


def frontier_of(rows: list[Row]) -> Iterator[tuple[Row, float, float]]:
    """(row, KL from the reference, reward margin) of the rows that have both."""
    for row in rows:
        kl, reward = (
            next((row.metrics[name] for name in names if name in row.metrics), None)
            for names in (DISTANCES, REWARDS)
        )
        if kl is not None and reward is not None:
            yield row, kl, reward


def unbeaten(points: list[tuple[Row, float, float]]) -> list[tuple[Row, float, float]]:
    """The points that no other beats: none has a larger margin at the same KL or less. By KL, ascending."""
    found: list[tuple[Row, float, float]] = []
    for point in sorted(points, key=lambda point: (point[1], -point[2])):
        if not found or point[2] > found[-1][2]:
            found.append(point)
    return found


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise RecipeError([FieldIssue(f"sweep.{key}", f"{parent} is a value, not a section")])
        node = child
    node[last] = value


def _as_the_sweep_names_it(issue: FieldIssue, point: Point) -> FieldIssue:
    """The issue at the option that varies, where it is in that option, in a part of it, or in a section above it."""
    for key in point.values:
        if f"{issue.path}.".startswith(f"{key}."):
            return FieldIssue(f"sweep.{issue.path}", issue.message)
        if key.startswith(f"{issue.path}."):
            return FieldIssue(f"sweep.{key}", f"{issue.path}: {issue.message}")
    return FieldIssue(issue.path, f"{issue.message} (at {point.label()})")


def _error(result: Mapping[str, Any]) -> str | None:
    error = result.get("error")
    return str(error.get("message", error)) if isinstance(error, Mapping) else None
