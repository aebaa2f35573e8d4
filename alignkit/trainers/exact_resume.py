"""Atomic checkpoints and exact resume, shared by all trainers.

The Trainer restores weights, optimizer, schedule, random states and the order of the data. This module adds what it
forgets: the metrics gathered since the last log, the number of tokens trained on, and an interrupted evaluation.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.models.adapters import START
from alignkit.run.checkpoints import ASIDE, rotate, seal
from alignkit.run.folder import RunFolder
from alignkit.run.pausing import EvaluationCut
from alignkit.trainers.metrics import ItemMetrics
from alignkit.trainers.upstream import logging_sums, restore_logging_sums


class ExactResume:
    """Mixin before a TRL trainer that makes a resume exact. On several nodes `output_dir` must be a shared folder."""

    accelerator: Any
    args: Any
    control: Any
    model: Any
    state: Any
    _items: dict[str, ItemMetrics]

    origin: Mapping[str, Any] = MappingProxyType({})
    """Description of the run, written into its checkpoints and compared on resume."""

    best_step: int | None = None
    """Step whose checkpoint is kept however old it gets; not the Trainer's own, which then deletes the last one."""

    _aside = False
    _evaluation_due = False
    _sealed_step = -1
    _resumed_from: str | None = None

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train as the Trainer does. A resumed run logs the same values as an uninterrupted one."""
        self._resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        if not any(isinstance(callback, _RestoreLogging) for callback in self.callback_handler.callbacks):  # type: ignore[attr-defined]
            self.add_callback(_RestoreLogging(self))  # type: ignore[attr-defined]
        return super().train(resume_from_checkpoint, **kwargs)  # type: ignore[misc]

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **kwargs: Any) -> None:
        """Run an epoch, unless all steps are done or training has stopped: the Trainer would make a step too many."""
        set_epoch(train_dataloader, epoch)
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)  # type: ignore[misc]

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, **options: Any) -> dict[str, float]:
        """Evaluate. An evaluation that a pause interrupts is repeated on resume."""
        if self._resumed_from and options.get("skip_scheduler"):  # `eval_on_start`, but the run is resumed
            return {}
        try:
            metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, **options)  # type: ignore[misc]
        except EvaluationCut:
            self._items["eval"].take()
            self._evaluation_due = True
            return {}
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        path: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return str(Path(path) / ASIDE) if self._aside else path

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside. One process seals it when all are done."""
        if self._sealed_step == self.state.global_step:  # the end of an epoch may save a step again
            return
        folder = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder / ASIDE, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._aside = True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._aside = False
        torch.save(self._logging_state(), self._logging_file(folder / ASIDE / name))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._name_the_best(folder, name)
            seal(folder / ASIDE / name, folder / name, {**self.origin, "best_step": self.best_step})
            rotate(folder, self.args.save_total_limit, {name, *self._kept(folder)})
        self.accelerator.wait_for_everyone()
        self._sealed_step = self.state.global_step

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the weights, without duplicates of tied weights and without the frozen copy of a continued adapter.

        FSDP2 gathers a tied weight, such as a head that shares the embedding, under both of its names.
        """
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        whole = {name: value for name, value in (state_dict or {}).items() if name not in tied}
        super()._save(output_dir, whole if state_dict else state_dict)  # type: ignore[misc]
        if self.args.should_save:
            shutil.rmtree(Path(output_dir or self.args.output_dir) / START, ignore_errors=True)

    def _kept(self, folder: Path) -> Iterator[str]:
        """Names of checkpoints that are kept however old: of the best step, and the one a collapse rolls back to."""
        if self.best_step:
            yield f"checkpoint-{self.best_step}"
        if self.state.best_model_checkpoint:
            yield Path(self.state.best_model_checkpoint).name
        if sound := _last_sound(folder):
            yield Path(sound).name

    def _name_the_best(self, folder: Path, name: str) -> None:
        """Correct `best_model_checkpoint`, which the Trainer may have set to the folder's temporary name."""
        if self.state.best_model_checkpoint == str(folder / ASIDE / name):
            self.state.best_model_checkpoint = str(folder / name)
            self.state.save_to_json(str(folder / ASIDE / name / "trainer_state.json"))

    def _logging_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"logging_{self.args.process_index}.pt"

    def _logging_state(self) -> dict[str, Any]:
        return {
            **logging_sums(self),
            "items": {mode: items.state() for mode, items in self._items.items()},
            "evaluation_due": self._evaluation_due,
        }

    def restore_logging(self) -> None:
        """Restore the logging state from the checkpoint that the run resumes from."""
        files = sorted(Path(self._resumed_from).glob("logging_*.pt")) if self._resumed_from else []
        if not files:
            return
        if len(files) == self.args.world_size:
            files = [self._logging_file(Path(str(self._resumed_from)))]
        states = [torch.load(file, weights_only=True) for file in files]
        # With another number of processes the losses since the last log are averaged; the rest is the same on all.
        loss_since = torch.stack([state["loss_since"] for state in states]).mean()
        state = states[0]
        restore_logging_sums(self, {**state, "loss_since": loss_since})
        for mode, items in state["items"].items():
            self._items[mode].restore(items)
        self.restore_state(state)
        if state["evaluation_due"]:
            self._evaluate(None, None)

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore what a mixin added to the logging state."""


def set_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch of the sampler that shuffles a dataloader's rows.

    The Trainer and accelerate do so too, but in a resumed epoch on several processes they do not reach the sampler,
    which is then wrapped once more; the rest of the epoch would have the order of the first one.
    """
    sampler: Any = getattr(loader, "batch_sampler", None)
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    sampler = getattr(sampler, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)


def _last_sound(checkpoints: Path) -> str | None:
    """The checkpoint that a collapse would roll back to; it is kept, however old. None if there is none."""
    guard = RunFolder(checkpoints.parent).guard
    if not guard.exists():
        return None
    steps = json.loads(guard.read_text(encoding="utf-8"))["sound_steps"]
    return str(checkpoints / f"checkpoint-{steps[-1]}") if steps else None


class _RestoreLogging(TrainerCallback):
    def __init__(self, trainer: ExactResume) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Restore the sums, which the Trainer has just set to zero."""
        self._trainer.restore_logging()
