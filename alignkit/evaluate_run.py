"""Evaluates a finished run again: the untrained and the trained model on the same validation rows."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import DataError, FieldIssue, RecipeError
from alignkit.evaluate_answers import Options, compare, draw_answers, questions_of
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.sections import CollapseGuardSection


@dataclass(frozen=True, slots=True)
class Comparison:
    """Metrics before and after training, named as in the run's events."""

    before: dict[str, float | None]
    after: dict[str, float | None]
    answers: dict[str, Any] = field(default_factory=dict)
    """Measures of both models' answers, see `alignkit.evaluate_answers.compare`; empty if none were drawn."""


def evaluate_run(
    run: Path, *, data: Path | None = None, step: int | None = None, options: Options | None = None
) -> Comparison:
    """Evaluate the run in the folder `run` on `data` (default: its recipe's validation file).

    `step` selects a checkpoint instead of the result. With `options`, both models also answer held-out prompts.
    Raises RecipeError if there is no recipe or nothing to evaluate on, DataError if the weights are missing, and the
    errors of a judge and a reward model.
    """
    folder = RunFolder(run)
    recipe = Recipe.load(folder.recipe, [f"data.validation={data}"] if data else [])
    if recipe.data.validation is None:
        raise RecipeError(
            [FieldIssue("data.validation", "the run has no validation file: pass one with --data")]
        )
    weights = _weights(folder, recipe, step)
    with tempfile.TemporaryDirectory() as scratch:
        trainer, guard = _trainer(recipe, Path(scratch))
        before = _measure(trainer, guard)
        if options is None or not options.prompts:
            _load(trainer, weights)
            return Comparison(before, _measure(trainer, guard))
        questions = questions_of(recipe, trainer.processing_class, options.prompts)
        untrained = draw_answers(trainer, questions, options.max_tokens, recipe.seed)
        _load(trainer, weights)
        after = _measure(trainer, guard)
        trained = draw_answers(trainer, questions, options.max_tokens, recipe.seed)
        return Comparison(before, after, compare(questions, untrained, trained, options))


def _weights(folder: RunFolder, recipe: Recipe, step: int | None) -> Path:
    result = folder.model if recipe.lora is None else folder.adapter
    path = result if step is None else folder.checkpoints / f"checkpoint-{step}"
    if not path.is_dir():
        raise DataError(f"{folder.path} has no {path.relative_to(folder.path)}: expected a finished run")
    return path


def _trainer(recipe: Recipe, scratch: Path) -> tuple[Any, Any]:
    from alignkit.run.progress import ProgressCallback  # saves transformers at start-up
    from alignkit.train import build_trainer, quiet_libraries, use_all_cores
    from alignkit.trainers.collapse_guard import CollapseGuard

    quiet_libraries()
    use_all_cores()
    folder = RunFolder(scratch)
    trainer = build_trainer(recipe, folder)
    trainer.remove_callback(ProgressCallback)
    options = recipe.collapse_guard or CollapseGuardSection()
    return trainer, CollapseGuard(trainer, options, folder, seed=recipe.seed)


def _load(trainer: Any, weights: Path) -> None:
    from alignkit.trainers.scoring import load_weights  # saves transformers at start-up

    load_weights(trainer, weights)


def _measure(trainer: Any, guard: Any) -> dict[str, float | None]:
    from alignkit.run.progress import rename  # saves transformers at start-up

    metrics: dict[str, float] = dict(trainer.evaluate())
    quality = guard.compare_now()
    if quality is not None:
        metrics |= {f"eval_{name}": value for name, value in quality.metrics().items()}
    return rename(metrics)
