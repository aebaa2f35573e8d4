"""Callbacks of the trackers: those of transformers, with the run's destination and protected from ending the run.

A resumed run continues the same record at the tracker; the record's id is in the run's folder.
"""

import copy
import json
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from alignkit.errors import FieldIssue, RecipeError
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder, write_json
from alignkit.tracking import (
    MLflowTracker,
    TrackioTracker,
    WandbTracker,
    how_to_install,
    installed,
    without_secrets,
)

FINISH_SECONDS = 60.0
"""Seconds that a tracker may take to send its last metrics before the run ends without it."""


class TensorBoard(TensorBoardCallback):
    """Writes into the run's folder; marks what a killed run wrote after its checkpoint as superseded."""

    def __init__(self, _tracker: Any, folder: RunFolder, _recipe: Recipe) -> None:
        super().__init__()
        self.logging_dir = str(folder.path / "tensorboard")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the event file."""
        beyond = state.global_step + 1 if state.global_step else None
        self.tb_writer = self._SummaryWriter(self.logging_dir, purge_step=beyond)
        super().on_train_begin(args, state, control, **kwargs)


class Wandb(WandbCallback):
    """One run at Weights & Biases, with default tags like OpenAI's."""

    def __init__(self, tracker: WandbTracker, folder: RunFolder, recipe: Recipe) -> None:
        super().__init__()
        self._tracker, self._folder = tracker, folder
        base = os.path.basename(recipe.model.path)  # noqa: PTH119 - may be a hub id
        defaults = ("finetune", base, folder.path.name)
        self._tags = [f"alignkit/{name}"[:64] for name in defaults] + (tracker.tags or [])

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Start or resume the run. Sends nothing about the machine: no console output, code or git state."""
        settings = self._wandb.Settings(
            console="off", save_code=False, disable_git=True, finish_timeout=FINISH_SECONDS
        )
        self._wandb.init(
            project=self._tracker.project,
            name=self._tracker.name or self._folder.path.name,
            entity=self._tracker.entity,
            tags=self._tags,
            dir=str(self._folder.path),
            id=record_id(self._folder, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            settings=settings,
        )
        super().setup(args, state, model, **kwargs)


class Trackio(TrackioCallback):
    """One run at Trackio; a run with an existing name is continued."""

    def __init__(self, tracker: TrackioTracker, folder: RunFolder, _recipe: Recipe) -> None:
        super().__init__()
        self._tracker, self._folder = tracker, folder

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Start or resume the run."""
        named = copy.copy(args)
        named.project, named.run_name = self._tracker.project, self._tracker.name or self._folder.path.name
        super().setup(named, state, model, **kwargs)


class MLflow(MLflowCallback):
    """One run at MLflow; it ends with the process, because the last evaluation follows the training."""

    def __init__(self, tracker: MLflowTracker, folder: RunFolder, _recipe: Recipe) -> None:
        super().__init__()
        self._tracker, self._folder = tracker, folder

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Start or resume the run."""
        self._ml_flow.set_experiment(self._tracker.project)
        begin = self._ml_flow.start_run
        name = self._tracker.name or self._folder.path.name
        known = record_id(self._folder, "mlflow", lambda: begin(run_name=name).info.run_id)
        if self._ml_flow.active_run() is None:
            begin(run_id=known)
        super().setup(args, state, model)


CALLBACKS: Mapping[str, Callable[..., TrainerCallback]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


class Guarded(TrainerCallback):
    """A tracker whose failure only ends the tracking; an event of the run reports it."""

    def __init__(self, name: str, tracker: TrainerCallback, folder: RunFolder) -> None:
        self._name = name
        self._tracker: TrainerCallback | None = tracker
        self._folder = folder

    def on_train_begin(self, *given: Any, **kwargs: Any) -> None:
        """Pass the call on to the tracker."""
        self._pass("on_train_begin", *given, **kwargs)

    def on_log(self, *given: Any, **kwargs: Any) -> None:
        """Pass the call on to the tracker."""
        self._pass("on_log", *given, **kwargs)

    def on_train_end(self, *given: Any, **kwargs: Any) -> None:
        """Pass the call on to the tracker."""
        self._pass("on_train_end", *given, **kwargs)

    def _pass(self, hook: str, *given: Any, **kwargs: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, hook)(*given, **kwargs)
        except Exception as error:
            self._tracker = None
            message = without_secrets(f"{type(error).__name__}: {error}")
            self._folder.emit(
                f"The tracker {self._name} failed, and the run continues without it: {message}", level="warn"
            )


def tracker_callbacks(recipe: Recipe, folder: RunFolder) -> list[TrainerCallback]:
    """A callback for each of the recipe's trackers. Raises RecipeError if one is not installed."""
    for index, tracker in enumerate(recipe.training.report_to):
        if not installed(tracker.type):
            message = f"{tracker.type} is not installed: run `{how_to_install(tracker.type)}`, or remove it"
            raise RecipeError([FieldIssue(f"training.report_to.{index}", message)])
    return [
        Guarded(tracker.type, CALLBACKS[tracker.type](tracker, folder, recipe), folder)
        for tracker in recipe.training.report_to
    ]


def record_id(folder: RunFolder, tracker: str, new: Callable[[], str]) -> str:
    """The id of this run's record at a tracker; created the first time, and the same from then on."""
    path = folder.path / "trackers.json"
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if tracker not in known:
        known[tracker] = new()
        write_json(path, known)
    return known[tracker]
