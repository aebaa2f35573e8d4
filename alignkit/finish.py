"""The end of a run, after its last step: what is measured, which weights are kept, and what is written."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.models.loading import ends_of
from alignkit.recipe import Recipe
from alignkit.run.best_step import BestStep
from alignkit.run.folder import SAVED_TEACHER, RunFolder, write_json
from alignkit.sharding import is_main_process


def finish(trainer: Any, guard: Any, recipe: Recipe, folder: RunFolder, started: float) -> None:
    """Evaluate, save the weights, measure the canary and write the result."""
    phases: dict[str, float] = {}
    with phase("evaluation", "Evaluating the result", folder, phases):
        metrics, step, best = settle_weights(trainer, guard, recipe, folder)
    tuned = settle_options(trainer, guard, recipe, folder)
    if recipe.after:
        with phase("after", "Changing the trained weights", folder, phases):
            apply_steps(trainer, guard, recipe, folder)
            metrics = final_metrics(trainer, step, again=True)
    gap = measure_formats(trainer, recipe, folder, phases)
    with phase("saving", "Saving the result", folder, phases):
        save(trainer, recipe, folder, metrics, of_step(step, trainer.state.global_step, best))
    with phase("canary", "Measuring what the served model must answer", folder, phases):
        save_canary(trainer, folder)
    if is_main_process():
        state = trainer.state
        stopped_early = state.global_step < state.max_steps and (guard is None or not guard.collapsed)
        result = {
            "status": "succeeded",
            "steps": state.global_step,
            "result_step": step,
            "best": None if best is None else asdict(best),
            "stopped_early": stopped_early,
            "trained_tokens": trainer.trained_tokens,
            "seconds": round(time.monotonic() - started, 1),
            "phases": phases,
            "metrics": metrics,
            **({} if tuned is None else {"tuned": tuned}),
            **({} if gap is None else {"elastic": gap}),
        }
        write_json(folder.result, result)
        print(f"Finished in {result['seconds']:.0f} s: {folder.path}", flush=True)


def settle_weights(
    trainer: Any, guard: Any, recipe: Recipe, folder: RunFolder
) -> tuple[dict[str, Any], int, BestStep | None]:
    """Evaluate the last step, then load the weights to publish, and return their (metrics, step, best step).

    They are the last step's, the last sound step's after a collapse, or the best step's if the recipe keeps that.
    Raises CollapseError if the guard lets nothing be published.
    """
    from alignkit.trainers.best_checkpoint import keep_best  # saves transformers at start-up

    metrics, step = final_metrics(trainer, trainer.state.global_step), trainer.state.global_step
    sound = None if guard is None else guard.settle()
    if recipe.keeps_best:
        best = keep_best(trainer, recipe, folder, is_last=sound is None)
        if best is not None:
            return metrics_at(trainer.state.log_history, best.step), best.step, best
    if sound is not None:
        return final_metrics(trainer, sound, again=True), sound, None
    return metrics, step, None


def of_step(step: int, last: int, best: BestStep | None) -> str:
    """A sentence for the card that says which step the weights are of; empty for the last step without a choice."""
    if best is None and step == last:
        return ""
    why = (
        "the last before the answers collapsed"
        if best is None
        else f"the best by `{best.metric}` ({best.value:.4g})"
    )
    return f"The weights are those after step {step} of {last}, {why}."


def settle_options(trainer: Any, guard: Any, recipe: Recipe, folder: RunFolder) -> dict[str, float] | None:
    """Make the adapter of a run with `tune` the plain one at the options found. Returns them; None without `tune`."""
    if recipe.tune is None:
        return None
    run = finished(trainer, guard, recipe, folder)
    found: dict[str, float] = trainer.fold_options(run)
    starts = ((name, getattr(recipe.method, name), value) for name, value in found.items())
    shown = ", ".join(f"{name} from {start:g} to {value:.4g}" for name, start, value in starts)
    run.report(f"Tuned {shown}")
    return found


def measure_formats(
    trainer: Any, recipe: Recipe, folder: RunFolder, phases: dict[str, float]
) -> dict[str, float] | None:
    """Held-out loss as trained and in each format of `elastic`, also as an event; None without `elastic`."""
    from alignkit.trainers.elastic import measured_gap  # saves transformers at start-up
    from alignkit.trainers.scoring import published

    if recipe.elastic is None:
        return None
    with phase("elastic", "Measuring the adapter over quantised weights", folder, phases):
        model = published(trainer.model, trainer.accelerator)
        found = measured_gap(trainer, model, list(recipe.elastic.formats))
    if is_main_process():
        shown = ", ".join(f"{name} {loss:.4g}" for name, loss in found.items())
        folder.emit(f"Held-out loss {shown}", data=found)
    return found


def apply_steps(trainer: Any, guard: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Apply the recipe's steps after training, in order."""
    run = finished(trainer, guard, recipe, folder)
    for step in recipe.after:
        step.apply(run)


def finished(trainer: Any, guard: Any, recipe: Recipe, folder: RunFolder) -> Any:
    """The trained model, as the steps after training see it."""
    from alignkit.trainers.finishing import FinishedRun  # saves transformers at start-up

    def report(message: str, is_warning: bool) -> None:  # noqa: FBT001
        if is_main_process():
            print(message, flush=True)
            folder.emit(message, level="warn" if is_warning else "info")

    return FinishedRun(trainer, recipe, guard, report, partial(save_beside, trainer, recipe, folder))


@contextmanager
def phase(name: str, message: str, folder: RunFolder, phases: dict[str, float]) -> Iterator[None]:
    """Run a part that follows the last step: report its start as an event, and store its seconds in `phases`."""
    if is_main_process():
        print(f"{message} …", flush=True)
        folder.emit(message, data={"phase": name})
    began = time.monotonic()
    yield
    phases[name] = round(time.monotonic() - began, 1)


def final_metrics(trainer: Any, step: int, *, again: bool = False) -> dict[str, Any]:
    """Return the metrics of weights that were trained up to `step`. Evaluates if that step was not evaluated.

    `again`: whether to evaluate in any case, because the weights are no longer those of the last step.
    """
    log = trainer.state.log_history
    before = len(log)
    if trainer.eval_dataset is not None and (again or not _evaluated_at_end(trainer.state)):
        trainer.evaluate()
    return metrics_at([*log[:before], *({**entry, "step": step} for entry in log[before:])], step)


def metrics_at(log: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """The last values that the Trainer's log has of each metric up to `step`, under OpenAI's names."""
    from alignkit.run.progress import rename  # saves transformers at start-up

    logs: dict[str, Any] = {}
    for entry in log:
        if entry["step"] <= step and "train_runtime" not in entry:
            logs.update({name: value for name, value in entry.items() if name != "step"})
    return rename(logs)


def _evaluated_at_end(state: Any) -> bool:
    return any(entry["step"] == state.global_step and "eval_loss" in entry for entry in state.log_history)


def save(trainer: Any, recipe: Recipe, folder: RunFolder, metrics: dict[str, Any], note: str = "") -> None:
    """Write the adapter or the model, completely or not at all, and move a saved teacher next to it.

    `note` is a sentence for the card.
    """
    target = folder.model if recipe.lora is None else folder.adapter
    staging = _staged(trainer, target)
    if is_main_process():
        teacher = staging / SAVED_TEACHER
        if teacher.is_dir():
            _put(teacher, folder.teacher)
            teacher.parent.rmdir()
        _complete(trainer, recipe, target, card_of(trainer, recipe, metrics, note))


def save_beside(trainer: Any, recipe: Recipe, folder: RunFolder, name: str, note: str) -> None:
    """Write the current adapter or model to the folder `name` in `interpolated`, without metrics. Collective."""
    target = folder.interpolated / name
    staging = _staged(trainer, target)
    if is_main_process():
        shutil.rmtree(staging / SAVED_TEACHER.parent, ignore_errors=True)
        _complete(trainer, recipe, target, card_of(trainer, recipe, {}, note))


def _staged(trainer: Any, target: Path) -> Path:
    """Write the weights to a hidden folder beside `target`, and return it."""
    staging = _staging(target)
    trainer.save_model(str(staging))
    return staging


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp")


def _complete(trainer: Any, recipe: Recipe, target: Path, card: Any) -> None:
    """Add the tokens that end an answer and the card to the saved weights, and put them in place."""
    from alignkit.trainers.model_card import CARD  # saves transformers at start-up

    staging = _staging(target)
    if recipe.lora is not None:
        _keep_ends(trainer, staging)
    (staging / CARD).write_text(card.text(), encoding="utf-8")
    _put(staging, target)


def card_of(trainer: Any, recipe: Recipe, metrics: dict[str, Any], note: str = "") -> Any:
    """The card of a run's model: the recipe's files by name, and the metrics of its result."""
    base, data = recipe.model.path, recipe.data
    files = {"training": f"{Path(data.train).name}, {len(trainer.train_dataset):,} rows"}
    if isinstance(data.validation, str):
        files["validation"] = Path(data.validation).name
    elif data.validation is not None:
        files["validation"] = f"{data.validation:g} of the training file's prompts"
    is_folder = Path(base).is_dir()
    return trainer.card(
        base_model=Path(base).name if is_folder else base,
        on_hub=not is_folder,
        data=files,
        metrics=metrics,
        note=note,
    )


def _keep_ends(trainer: Any, adapter: Path) -> None:
    """Write next to the adapter the tokens that end an answer; a base model's folder may name fewer."""
    from transformers import GenerationConfig  # saves transformers at start-up

    from alignkit.trainers.scoring import published

    model = published(trainer.model, trainer.accelerator)
    GenerationConfig(eos_token_id=ends_of(model, trainer.processing_class)).save_pretrained(adapter)


def _put(source: Path, target: Path) -> None:
    (source / "training_args.bin").unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def save_canary(trainer: Any, folder: RunFolder) -> None:
    """Measure the canary and write canary.json."""
    from alignkit import canary  # saves transformers at start-up

    measured = canary.measure(trainer)
    if measured is not None and is_main_process():
        write_json(folder.canary, measured)
