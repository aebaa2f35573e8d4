"""A run's folder: what is in it, who writes it, and how it is written.

recipe.yaml     the resolved recipe
train.log       output of the training process (written by whoever starts it)
events.jsonl    what the trainer reports, append-only: {created_at, level, type, message, data}
checkpoints/    checkpoint-N folders, whole or absent (alignkit.run.checkpoints)
samples/        answers that D2O drew, and the references' log-probs
adapter/        the trained adapter (or model/ for all weights), whole or absent
collapse_guard.json   what the untrained model answered like, and the steps that were sound
teacher/        the trained teacher of a distillation, where its recipe asks for it
tensorboard/    event files, where the recipe reports to tensorboard (other trackers: a folder of their own name)
trackers.json   ids of the run's records at trackers, by which a resumed run goes on with them
canary.json     log-probs by which a server proves that it answers with this result
result.json     {"status": "succeeded" | "failed" | "paused", …}, written last
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignkit.run.checkpoints import damage, newest_first

Level = Literal["info", "warn", "error"]
SAVED_TEACHER = Path("teacher") / "model"
"""Where a trained teacher lies inside a saved student. Not `teacher` itself: the Trainer takes a folder with an
adapter right inside a checkpoint for one more adapter of the student."""


def newest(path: Path) -> Path:
    """The newest run in an `output_dir`: its last repeat, or the folder itself."""
    repeats = [folder for folder in path.glob("repeat-*") if folder.name.removeprefix("repeat-").isdigit()]
    return max(repeats, key=lambda folder: int(folder.name.removeprefix("repeat-")), default=path)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

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

    def last_checkpoint(self, skipped: Callable[[str], object] = lambda _: None) -> Path | None:
        """The newest whole checkpoint, or None; `skipped` is told of each newer one, in a sentence."""
        for path in newest_first(self.checkpoints):
            wrong = damage(path)
            if wrong is None:
                return path
            skipped(f"{path.name} is damaged, so the run goes on from an earlier checkpoint: {wrong}")
        return None

    def emit(self, message: str, *, level: Level = "info", type: str = "message", data: Any = None) -> None:  # noqa: A002 - OpenAI's name
        """Append one event; a reader sees whole lines only."""
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
        """The result, or None while there is none."""
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
                file.seek(max(0, size - 65536))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])[-limit:]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` whole or not at all: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
