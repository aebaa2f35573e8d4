"""A run's folder: its contents, who writes them, and how.

recipe.yaml     the resolved recipe
settled.json    options that the run settled for itself, if the recipe says auto
train.log       output of the training process (written by the process that starts it)
events.jsonl    the trainer's events, append-only: {created_at, level, type, message, data}
checkpoints/    checkpoint-N folders, written atomically (alignkit.run.checkpoints)
samples/        answers sampled for D2O, and log-probs of the references
adapter/        the trained adapter (or model/ if all weights were trained), written atomically
collapse_guard.json   measures of the untrained model's answers, and the steps that were sound
interpolated/   models at other strengths, of `interpolate.publish` or `alignkit interpolate`
teacher/        the trained teacher of a distillation, if the recipe saves it
tensorboard/    event files, if the recipe reports to tensorboard (other trackers: a folder with their name)
trackers.json   ids of the run at its trackers, so that a resumed run continues the same records
canary.json     log-probs with which a server verifies that it serves this result
result.json     {"status": "succeeded" | "failed" | "paused", …}, written before the report alone
facts.json      what the report shows beside events and result (alignkit.run.facts)
report.html     the report, one file; its charts are in report/ as well (alignkit.report)
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignkit.disk import put
from alignkit.recipe import Recipe
from alignkit.run.checkpoints import damage, newest_first

Level = Literal["info", "warn", "error"]
REPORT_SWITCH = "ALIGNKIT_REPORT"
"""The environment variable that turns a run's report off."""
LOG_TAIL_BYTES = 65_536
"""Bytes at the end of a log that are searched for its last lines."""
SAVED_TEACHER = Path("teacher") / "model"
"""Path of a trained teacher inside a saved student.

Not `teacher` itself: the Trainer takes a folder with an adapter directly inside a checkpoint for another adapter of
the student.
"""


def newest(path: Path) -> Path:
    """The newest run in an `output_dir`: its last repeat, or the folder itself."""
    repeats = [folder for folder in path.glob("repeat-*") if folder.name.removeprefix("repeat-").isdigit()]
    return max(repeats, key=lambda folder: int(folder.name.removeprefix("repeat-")), default=path)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def settled(self) -> Path:
        return self.path / "settled.json"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def interpolated(self) -> Path:
        return self.path / "interpolated"

    @property
    def guard(self) -> Path:
        return self.path / "collapse_guard.json"

    @property
    def teacher(self) -> Path:
        return self.path / "teacher"

    @property
    def canary(self) -> Path:
        return self.path / "canary.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def facts(self) -> Path:
        return self.path / "facts.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def charts(self) -> Path:
        return self.path / "report"

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe, with this folder as its output."""
        resolved = recipe.model_copy(update={"output_dir": str(self.path)})
        self.recipe.write_text(resolved.to_yaml(), encoding="utf-8")

    def last_checkpoint(self, skipped: Callable[[str], object] = lambda _: None) -> Path | None:
        """The newest undamaged checkpoint, or None; `skipped` is called with a sentence about each newer one."""
        for path in newest_first(self.checkpoints):
            wrong = damage(path)
            if wrong is None:
                return path
            skipped(f"{path.name} is damaged, so the run resumes from an earlier checkpoint: {wrong}")
        return None

    def emit(self, message: str, *, level: Level = "info", type: str = "message", data: Any = None) -> None:  # noqa: A002 - OpenAI's name
        """Append one event; readers see only complete lines."""
        event = {
            "created_at": int(time.time()),
            "level": level,
            "type": type,
            "message": message,
            "data": data or {},
        }
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The result, or None if there is none yet."""
        try:
            value = json.loads(self.result.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return value if isinstance(value, dict) else None

    def log_tail(self, lines: int = 20, limit: int = 4000) -> str:
        """The last lines of the training log, at most `limit` characters."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - LOG_TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])[-limit:]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` whole, in place of what is there."""
    put(path, json.dumps(value, ensure_ascii=False, indent=1).encode())
