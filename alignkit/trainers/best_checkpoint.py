"""Early stopping, and the checkpoint of the best step, which becomes the run's result."""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.errors import FieldIssue, RecipeError
from alignkit.recipe import Recipe
from alignkit.run.best_step import BestStep, best_step, evaluated, stops
from alignkit.run.checkpoints import damage
from alignkit.run.folder import RunFolder
from alignkit.trainers.scoring import load_weights


class BestCheckpoint(TrainerCallback):
    """Callback that saves a checkpoint at each new best step and stops training early, as the recipe asks.

    It must follow the collapse guard, whose verdict on a step it reads from the log. Collective: every rank runs it.
    """

    def __init__(self, trainer: Any, recipe: Recipe, folder: RunFolder) -> None:
        self._trainer, self._recipe, self._folder = trainer, recipe, folder

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End a run at once that had stopped early before it was interrupted."""
        values = self._values(state)
        self._note(best_step(values, self._recipe.training.best_metric))
        if max(values, default=0) == state.global_step > 0 and stops(values, self._recipe.training):
            control.should_training_stop = True

    def on_evaluate(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the step if it is the best so far, and stop if the metric no longer gets better."""
        values = self._values(state)
        best = best_step(values, self._recipe.training.best_metric)
        ends = state.global_step < state.max_steps and stops(values, self._recipe.training)
        (best, ends) = broadcast_object_list([best, ends])
        self._note(best)
        if self._trainer.best_step == state.global_step:
            control.should_save = True
        if ends and not control.should_training_stop:
            control.should_training_stop = True
            if state.is_world_process_zero:
                self._report_stop(state, best)

    def _note(self, best: BestStep | None) -> None:
        self._trainer.best_step = best.step if best is not None and self._recipe.keeps_best else None

    def _values(self, state: TrainerState) -> dict[int, float]:
        return evaluated_steps(state, self._recipe)

    def _report_stop(self, state: TrainerState, best: BestStep | None) -> None:
        wanted = self._recipe.training.best_metric
        message = f"Training stops early at step {state.global_step} of {state.max_steps}: no better {wanted}"
        message += "" if best is None else f"; the best was {best}"
        print(message, flush=True)
        self._folder.emit(message, data={"step": state.global_step})


def evaluated_steps(state: TrainerState, recipe: Recipe) -> dict[int, float]:
    """The recipe's `best_metric` of each evaluated step. Raises RecipeError if the evaluations lack it."""
    metric = recipe.training.best_metric
    try:
        return evaluated(state.log_history, metric)
    except KeyError as error:
        message = f"expected a metric of this run's evaluations, found {metric}, which they lack"
        raise RecipeError([FieldIssue("training.best_metric", message)]) from error


def keep_best(trainer: Any, recipe: Recipe, folder: RunFolder, *, is_last: bool) -> BestStep | None:
    """Load the best step's weights and return the step; None if none can be chosen, and the weights are unchanged.

    A step whose checkpoint is gone or damaged cannot be chosen. `is_last`: whether the model has the weights of the
    last step, which then needs no checkpoint. Collective.
    """
    state, choice = trainer.state, [None]
    if state.is_world_process_zero:
        choice = [_choose(state, recipe, folder, is_last=is_last)]
    (best,) = broadcast_object_list(choice)
    if best is None:
        return None
    if not is_last or best.step != state.global_step:
        load_weights(trainer, _checkpoint(folder, best.step))
    return best


def _choose(state: TrainerState, recipe: Recipe, folder: RunFolder, *, is_last: bool) -> Any:
    values = evaluated_steps(state, recipe)
    while (best := best_step(values, recipe.training.best_metric)) is not None:
        if is_last and best.step == state.global_step:
            break
        wrong = damage(_checkpoint(folder, best.step))
        if wrong is None:
            break
        folder.emit(f"Step {best.step} is the best, but its checkpoint cannot be used: {wrong}", level="warn")
        values = _without(values, best.step)
    if best is not None and len(values) > 1:
        last = values.get(state.global_step)
        compared = "" if best.step == state.global_step or last is None else f"; {last:.4g} at the last step"
        folder.emit(f"The result is the best of {len(values)} evaluated steps: {best}{compared}")
    return best


def _without(values: Mapping[int, float], step: int) -> dict[int, float]:
    return {other: value for other, value in values.items() if other != step}


def _checkpoint(folder: RunFolder, step: int) -> Any:
    return folder.checkpoints / f"checkpoint-{step}"
