"""Checks of a recipe's options for faster layers, at the creation of a job and again when its run starts."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from alignkit.errors import FieldIssue, ModelError, RecipeError
from alignkit.extras import missing
from alignkit.models.layers import compiler_missing, kernel_refusals
from alignkit.models.trainable import config_of
from alignkit.recipe import Recipe


def require_layers(recipe: Recipe, *, gpu: bool, here: bool = True) -> None:
    """Raise RecipeError with the issues of `layer_issues`, if there are any."""
    if issues := list(layer_issues(recipe, gpu=gpu, here=here)):
        raise RecipeError(issues)


def layer_issues(recipe: Recipe, *, gpu: bool, here: bool = True) -> Iterator[FieldIssue]:
    """Yield what `model.layer_kernels` and `training.torch_compile` need and do not have.

    `gpu`: whether the run has one. `here`: whether it is this machine that trains, so that its packages and compiler
    count. A model on the hub is checked when it is loaded.
    """
    if recipe.model.layer_kernels is not None:
        yield from (FieldIssue("model.layer_kernels", reason) for reason in _kernels(recipe, gpu, here))
    compiler = compiler_missing(gpu=gpu) if here and recipe.training.torch_compile else None
    if compiler is not None:
        yield FieldIssue(
            "training.torch_compile",
            f"it needs a compiler, {compiler}, which is not installed: expected false",
        )


def _kernels(recipe: Recipe, gpu: bool, here: bool) -> Iterator[str]:  # noqa: FBT001
    if not gpu:
        yield "liger needs a GPU, where Triton runs, but this run has none: expected null"
    elif here and not _installed("liger_kernel"):
        yield missing("liger_kernel", extra="liger", purpose="liger")
    folder = Path(recipe.model.path)
    if (folder / "config.json").is_file():
        try:
            yield from kernel_refusals(config_of(folder))
        except ModelError:
            return  # the model's own check says so


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
