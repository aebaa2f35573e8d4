"""Interpolates a finished run's weights with those before training, at several strengths, without training."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from alignkit.after.adapter import read, write
from alignkit.after.interpolate import LARGEST, interpolated, interpolated_weights
from alignkit.errors import DataError, FieldIssue, RecipeError
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder


def interpolate_run(run: Path, amounts: Sequence[float]) -> list[Path]:
    """Write the model of the run in the folder `run` at each amount, and return the folders.

    An adapter stays an adapter. The folder is `interpolated/amount-0.25` in the run's folder, whose files are
    replaced if it exists. Raises RecipeError if there is no recipe or an amount is out of range, DataError if the
    weights are missing, ModelError if an adapter is not plain LoRA.
    """
    for amount in amounts:
        if not 0 < amount <= LARGEST:
            raise RecipeError(
                [FieldIssue("amount", f"expected above 0 and at most {LARGEST}, found {amount:g}")]
            )
    folder = RunFolder(run)
    recipe = Recipe.load(folder.recipe)
    source = folder.model if recipe.lora is None else folder.adapter
    if not source.is_dir():
        raise DataError(f"{run} has no {source.name}: expected a finished run")
    return [_write(folder, recipe, source, amount) for amount in amounts]


def _write(folder: RunFolder, recipe: Recipe, source: Path, amount: float) -> Path:
    target = folder.interpolated / f"amount-{amount:g}"
    staging = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(exist_ok=True)
    if recipe.lora is None:
        _write_weights(recipe, source, staging, amount)
    else:
        start = None if recipe.model.adapter is None else read(Path(recipe.model.adapter))
        changed = interpolated(read(source), start, amount)
        shutil.copytree(source, staging)
        write(changed, staging)
    _note(staging, amount)
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return target


def _write_weights(recipe: Recipe, source: Path, target: Path, amount: float) -> None:
    import torch  # saves torch and transformers where only adapters are interpolated

    from alignkit.models.loading import load_weights

    start, trained = (
        load_weights(path, recipe.model.dtype, field="model.path") for path in (recipe.model.path, source)
    )
    mixed = interpolated_weights(dict(start.named_parameters()), dict(trained.named_parameters()), amount)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            weight.copy_(mixed[name])
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json")
    )
    trained.save_pretrained(target)


def _note(folder: Path, amount: float) -> None:
    """Tell the amount on the model's card."""
    card = folder / "README.md"
    if card.is_file():
        with card.open("a", encoding="utf-8") as file:
            file.write(f"\nInterpolated with the model before training: {amount:g} of the trained weights.\n")
