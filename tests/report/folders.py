"""A finished run's folder as the trainer leaves it, written by hand."""

import json
from pathlib import Path
from typing import Any

import yaml

RECIPE: dict[str, Any] = {
    "model": {"path": "/srv/secret-place/models/tiny"},
    "data": {"train": "/srv/secret-place/files/pairs.jsonl"},
    "method": {"type": "f_dpo", "beta": 0.1},
    "output_dir": "/srv/secret-place/jobs/job-1",
}


def metrics(step: int, **values: float | None) -> dict[str, Any]:
    return {
        "created_at": 1_700_000_000 + step,
        "level": "info",
        "type": "metrics",
        "message": f"Step {step}/4",
        "data": {"step": step, "total_steps": 4, "seconds_remaining": 1, **values},
    }


def drawn(step: int, answer: str, *, sound: bool = True, prompt: str = "Why?") -> dict[str, Any]:
    answers = [{"prompt": prompt, "answer": answer, "known": "Because."}]
    data = {"step": step, "sound": sound, "collapse": [] if sound else ["it repeats"], "answers": answers}
    return {
        "created_at": 1_700_000_000 + step,
        "level": "info",
        "type": "message",
        "message": "x",
        "data": data,
    }


def warning(message: str, level: str = "warn", **data: Any) -> dict[str, Any]:
    return {"created_at": 1_700_000_009, "level": level, "type": "message", "message": message, "data": data}


def write_run(folder: Path, *events: dict[str, Any], **files: Any) -> Path:
    """A run with these events; `files` are JSON files by their stem, and `recipe` replaces parts of RECIPE."""
    folder.mkdir(parents=True)
    recipe = RECIPE | files.pop("recipe", {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
