"""From a fine-tuning job's hyperparameters, in OpenAI's shape, to a recipe.

One pydantic model a method; a field that takes "auto" is resolved here from the number of rows, and the resolved
value is what the job echoes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from alignkit import divergences
from alignkit.errors import FieldIssue, RecipeError
from alignkit.hardware import has_gpu
from alignkit.recipe import FDPOSection, Recipe, Section, field_issues

Auto = Literal["auto"]


class Hyperparameters(Section):
    """What every method takes: OpenAI's three, and the run's own."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] = "auto"
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    micro_batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    max_length: Auto | Annotated[int, Field(ge=16, le=131_072)] = "auto"
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    eval_interval: Auto | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    checkpoint_interval: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | None = None


class DPOHyperparameters(Hyperparameters):
    """OpenAI's `dpo`: f-DPO under the reverse KL."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"


class FDPOHyperparameters(DPOHyperparameters):
    """f-DPO's own: the divergence, and what goes with it."""

    divergence: str = "reverse_kl"
    alpha: Annotated[float, Field(gt=0, le=10)] | None = None
    f_alpha_divergence_coef: Annotated[float, Field(lt=1, ge=-9)] | None = None
    match_curvature: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: Annotated[float, Field(ge=0, le=100)] = 0.0


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """How a job's hyperparameters become a recipe's method section."""

    hyperparameters: type[Hyperparameters]
    learning_rate: float
    """What a learning_rate_multiplier of 1 means, with LoRA."""
    auto: dict[str, Any]
    section: type[FDPOSection]


SPECS: dict[str, MethodSpec] = {
    "f_dpo": MethodSpec(FDPOHyperparameters, learning_rate=1e-4, auto={"beta": 0.1}, section=FDPOSection),
    "dpo": MethodSpec(DPOHyperparameters, learning_rate=1e-4, auto={"beta": 0.1}, section=FDPOSection),
}
METHODS: tuple[str, ...] = tuple(SPECS)


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job's recipe and the hyperparameters as they were resolved."""

    recipe: Recipe
    hyperparameters: dict[str, Any]


def recipe_for_job(
    *,
    method: str,
    hyperparameters: dict[str, Any],
    model_path: Path,
    train_file: Path,
    validation_file: Path | None,
    train_rows: int,
    seed: int,
    output_dir: Path,
) -> JobSpec:
    """The recipe of a job; raises RecipeError with paths such as `method.f_dpo.hyperparameters.beta`."""
    if method not in SPECS:
        raise RecipeError(
            [FieldIssue("method.type", f"expected one of {', '.join(METHODS)}, found {method!r}")]
        )
    spec, prefix = SPECS[method], f"method.{method}.hyperparameters"
    try:
        given = spec.hyperparameters.model_validate(hyperparameters)
    except ValidationError as error:
        raise RecipeError(_plain_auto(field_issues(error, prefix))) from error
    values = given.model_dump()
    if ":" in values.get("divergence", ""):
        names = ", ".join(divergences.available())
        raise RecipeError([FieldIssue(f"{prefix}.divergence", f"expected one of {names}")])
    resolved = _resolve_auto(values, spec, train_rows, has_validation=validation_file is not None)
    recipe = Recipe(
        model={"path": str(model_path), "dtype": "bfloat16" if has_gpu() else "float32"},
        data=_data_section(resolved, train_file, validation_file),
        method=_method_section(resolved, spec, prefix),
        lora={"r": resolved["lora_rank"], "alpha": resolved["lora_alpha"]},
        training=_training_section(resolved, spec.learning_rate),
        seed=seed,
        output_dir=str(output_dir),
    )
    return JobSpec(recipe, {name: value for name, value in resolved.items() if value is not None})


def _plain_auto(issues: list[FieldIssue]) -> list[FieldIssue]:
    """One issue a field: pydantic reports each arm of `auto | number` on its own."""
    arms = {"literal['auto']", "int", "float", "constrained-int", "constrained-float"}
    merged: dict[str, str] = {}
    for issue in issues:
        head, _, last = issue.path.rpartition(".")
        is_arm = last in arms or last.startswith("function-")
        path = head if is_arm else issue.path
        message = issue.message
        if path in merged and is_arm:
            first = merged[path].split(", found")[0]
            message = f"{first} or {message.removeprefix('expected ')}"
        merged[path] = message
    return [FieldIssue(path, message) for path, message in merged.items()]


def _resolve_auto(
    values: dict[str, Any], spec: MethodSpec, rows: int, *, has_validation: bool
) -> dict[str, Any]:
    resolved = dict(values)
    batch = resolved["batch_size"]
    if batch == "auto":
        batch = resolved["batch_size"] = min(max(4, 2 ** (max(rows, 1).bit_length() - 6)), 32, max(rows, 1))
    defaults = {
        "n_epochs": max(1, min(3, round(200 * batch / max(rows, 1)))),
        "learning_rate_multiplier": 1.0,
        "max_length": 1024,
        **spec.auto,
    }
    for name, value in defaults.items():
        if resolved[name] == "auto":
            resolved[name] = value
    steps = resolved["max_steps"] or max(1, resolved["n_epochs"] * -(-rows // batch))
    if resolved["eval_interval"] == "auto":
        resolved["eval_interval"] = max(1, steps // 4) if has_validation else None
    resolved["lora_alpha"] = resolved["lora_alpha"] or 2.0 * resolved["lora_rank"]
    return resolved


def _data_section(resolved: dict[str, Any], train: Path, validation: Path | None) -> dict[str, Any]:
    return {
        "train": str(train),
        "validation": str(validation) if validation else None,
        "max_length": resolved["max_length"],
    }


def _training_section(resolved: dict[str, Any], learning_rate: float) -> dict[str, Any]:
    return {
        "epochs": resolved["n_epochs"],
        "max_steps": resolved["max_steps"],
        "batch_size": resolved["batch_size"],
        "micro_batch_size": resolved["micro_batch_size"],
        "learning_rate": learning_rate * resolved["learning_rate_multiplier"],
        "warmup_steps": resolved["warmup_steps"],
        "eval_steps": resolved["eval_interval"],
        "save_steps": resolved["checkpoint_interval"],
    }


def _method_section(resolved: dict[str, Any], spec: MethodSpec, prefix: str) -> FDPOSection:
    own = {name: resolved[name] for name in spec.section.model_fields if name in resolved}
    try:
        return spec.section.model_validate(own)
    except ValidationError as error:
        raise RecipeError(field_issues(error, prefix)) from error
