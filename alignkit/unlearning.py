"""Unlearning in two stages: adapters trained on unwanted answers, then a run on wanted ones that is pushed away."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import AlignkitError
from alignkit.launch import launch_command, run
from alignkit.run.folder import RunFolder, newest

RunStage = Callable[[Sequence[str]], int]
"""A function that runs a command and returns its exit status."""


def unlearn(
    negatives: Path,
    positives: Path,
    *,
    model: str,
    output: Path,
    seeds: int = 2,
    weight: float = 1.0,
    method: str = "supervised",
    overrides: Iterable[str] = (),
    start: RunStage = run,
) -> Path:
    """Run both stages in `output` and return the folder of the result.

    Stage one trains an adapter of `model` on `negatives` with each of `seeds` seeds. Stage two trains `model` with
    `method` on `positives`, with the term `repel` from these adapters. `overrides`, such as training.max_steps=20,
    hold for both. A stage that is finished is not run again. Raises AlignkitError if a stage fails.
    """
    given = list(overrides)
    adapters = []
    for seed in range(seeds):
        folder = output / f"negatives-{seed}"
        stage = _recipe(model, negatives, "supervised", folder, seed)
        adapters.append(str(_finished(stage, folder, given, start)))
    push = {"type": "repel", "adapters": adapters, "weight": weight}
    stage = _recipe(model, positives, method, output / "result", 0) | {"terms": [push]}
    _finished(stage, output / "result", given, start)
    return output / "result"


def _recipe(model: str, data: Path, method: str, folder: Path, seed: int) -> dict[str, Any]:
    return {
        "model": {"path": model},
        "data": {"train": str(data)},
        "method": {"type": method},
        "seed": seed,
        "output_dir": str(folder),
    }


def _finished(stage: dict[str, Any], folder: Path, overrides: Sequence[str], start: RunStage) -> Path:
    """The adapter of a stage, which is run unless its folder has one."""
    own = RunFolder(newest(folder)) if folder.is_dir() else RunFolder(folder)
    if own.adapter.is_dir():
        return own.adapter
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(stage, sort_keys=False), encoding="utf-8")
    status = start(launch_command(recipe, overrides))
    adapter = RunFolder(newest(folder) if folder.is_dir() else folder).adapter
    if status or not adapter.is_dir():
        raise AlignkitError(f"the stage {folder.name} failed with status {status}; its log is above")
    return adapter
