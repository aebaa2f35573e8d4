"""Reads from a run's folder what its report shows: recipe, events, result and facts. Loads no model and no data."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from alignkit.errors import DataError
from alignkit.redaction import scrub_paths
from alignkit.run import facts
from alignkit.run.folder import RunFolder
from alignkit.tracking import without_secrets

MOST_NOTICES = 100
"""Warnings and errors that are kept, the last ones."""
_NOT_METRICS = frozenset({"step", "total_steps", "seconds_remaining"})
Series = dict[str, dict[int, float]]
"""Name of a metric -> step -> value; NaN where it was not finite."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """The answers that the collapse guard drew at a step, and its verdict."""

    step: int
    sound: bool
    reasons: list[str]
    answers: list[dict[str, str]]
    """Texts by name: prompt, answer, and known for the data's own answer."""


@dataclass(slots=True)
class RunRecord:
    """Everything that a report shows of a run."""

    name: str
    recipe: dict[str, Any]
    result: dict[str, Any]
    """result.json; empty if the run was killed, or has not ended."""
    facts: dict[str, Any]
    series: Series = field(default_factory=dict)
    drawings: dict[int, Drawing] = field(default_factory=dict)
    notices: list[dict[str, Any]] = field(default_factory=list)
    """Warnings and errors: time (Unix seconds), level, message."""
    total_steps: int | None = None
    began: int | None = None
    ended: int | None = None
    """Times of the first and the last event, in Unix seconds."""
    kept_step: int | None = None
    """The step to which the collapse guard rolled the run back."""

    @property
    def status(self) -> str:
        """The status of the result, or `unfinished` without one."""
        return str(self.result.get("status", "unfinished"))

    @property
    def before(self) -> Drawing | None:
        """The untrained model's answers."""
        return self.drawings.get(min(self.drawings, default=0))

    @property
    def after(self) -> Drawing | None:
        """The last answers that were drawn, or those of the step that the run was rolled back to."""
        last = max(self.drawings, default=0) if self.kept_step is None else self.kept_step
        return self.drawings.get(last) if len(self.drawings) > 1 else None

    def take(self, event: dict[str, Any]) -> None:
        """Add an event; a step that is reported again after a resume has the later values."""
        data = event.get("data")
        data = data if isinstance(data, dict) else {}
        created = event.get("created_at")
        if isinstance(created, int):
            self.began, self.ended = created if self.began is None else self.began, created
        if isinstance(data.get("total_steps"), int):
            self.total_steps = data["total_steps"]
        message, step = str(event.get("message", "")), data.get("step")
        if event.get("level") in {"warn", "error"}:
            self.notices.append(
                {"time": created, "level": event["level"], "message": scrub_paths(without_secrets(message))}
            )
            del self.notices[:-MOST_NOTICES]
        if not isinstance(step, int):
            return
        if event.get("type") == "metrics":
            for name, value in data.items():
                if name not in _NOT_METRICS and (value is None or isinstance(value, int | float)):
                    self.series.setdefault(name, {})[step] = math.nan if value is None else float(value)
        elif isinstance(data.get("answers"), list):
            self.drawings[step] = Drawing(
                step, data.get("sound") is True, list(map(str, data.get("collapse") or [])), data["answers"]
            )
        elif message.startswith("Rolled back to step"):
            self.kept_step = step


def read_run(folder: RunFolder) -> RunRecord:
    """Read the run in `folder`. Raises DataError if there is none."""
    try:
        recipe = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(f"{folder.path}: expected a run's folder, with recipe.yaml: {why}") from error
    if not isinstance(recipe, dict):
        raise DataError(f"{folder.recipe}: expected a recipe, found {type(recipe).__name__}")
    record = RunRecord(
        name=folder.path.resolve().name,
        recipe=shown(recipe),
        result=shown(folder.read_result() or {}),
        facts=facts.read(folder),
    )
    for event in _events(folder):
        record.take(event)
    return record


def _events(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The whole lines of the events; a line that a killed run left half written is skipped."""
    try:
        file = folder.events.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def shown(value: Any) -> Any:
    """A JSON value without credentials, and with absolute paths shortened to their last part."""
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return scrub_paths(without_secrets(value)) if isinstance(value, str) else value
