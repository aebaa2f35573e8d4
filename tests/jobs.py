"""Jobs and recipes of a method, made from its options alone."""

from pathlib import Path
from typing import Any

from alignkit.jobspec import JobSpec, ResolveFile, recipe_for_job
from alignkit.methods import ModelSource, ResolveModel
from alignkit.recipe import Recipe


def no_models(name: str) -> ModelSource:
    """Resolves the models of a job that names none."""
    raise AssertionError(f"{name} is not asked for")


def no_files(file_id: str) -> Path:
    """Resolves the files of a job that names none."""
    raise AssertionError(f"{file_id} is not asked for")


def job_of(
    method: str, *, resolve: ResolveModel = no_models, find: ResolveFile = no_files, **hyperparameters: Any
) -> JobSpec:
    """A job on 240 rows. `resolve` and `find` find the models and files that its hyperparameters name."""
    return recipe_for_job(
        method=method,
        hyperparameters=hyperparameters,
        start=ModelSource("models/base"),
        train_file=Path("train"),
        validation_file=Path("validation"),
        train_rows=240,
        seed=3,
        output_dir=Path("out"),
        resolve_model=resolve,
        resolve_file=find,
    )


def recipe_of(method: str, *, lora: Any = "default", **options: Any) -> Recipe:
    """The shortest recipe of a method with these options."""
    values = {"model": {"path": "m"}, "data": {"train": "t"}, "method": {"type": method, **options}}
    given = {} if lora == "default" else {"lora": lora}
    return Recipe.parse({**values, **given, "output_dir": "o"})
