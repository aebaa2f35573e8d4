"""Turns a fine-tuning job's hyperparameters, in OpenAI's form, into a recipe.

Hyperparameters given as "auto" are resolved here; the job object shows the resolved values.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from alignkit import terms
from alignkit.errors import DataError, FieldIssue, ModelError, RecipeError
from alignkit.hardware import has_amx, has_gpu
from alignkit.methods import METHODS, Hyperparameters, Method, ModelSource, ResolveModel, hyperparameters_of
from alignkit.methods.hyperparameters import SECTIONS, TERMS, TUNE, in_jobs, job_name, shared_options
from alignkit.methods.registry import nearest_method
from alignkit.models.adapters import lora_of
from alignkit.models.chat_templates import named
from alignkit.models.trainable import length_within
from alignkit.options import GivenAs, InJobs, JobContext, mark_of
from alignkit.recipe import OF_TRAINING, Recipe
from alignkit.run.evaluation_share import Watching, steps_of
from alignkit.run.layer_checks import require_layers
from alignkit.run.reference_store import worth_storing
from alignkit.schema import field_issues, one_a_field
from alignkit.sections import CollapseGuardSection, loaded_dtype

SMALLEST_BATCH, LARGEST_BATCH = 4, 32
"""Bounds of an "auto" batch: fewer pairs make a noisy step, more make few steps of a small file."""
STEPS_WANTED, MOST_EPOCHS = 200, 3
"""An "auto" number of epochs gives about STEPS_WANTED steps. More than MOST_EPOCHS would memorise the preferences."""
ALL_WEIGHTS_RATE = 0.01
"""Full fine-tuning uses this fraction of the LoRA rate: one that suits an adapter destroys a fully trained model."""
GUARD_TOKENS = "guard_tokens"
"""Key of a value that a job resolves for its recipe and does not show."""
LENGTH = 1024
"""Maximum tokens per row if a job says "auto", limited to the model's positions."""
ResolveFile = Callable[[str], Path]
"""A function from a file's id to its path. Raises DataError unless the project has it, with completions in it."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job's recipe and its resolved hyperparameters."""

    recipe: Recipe
    hyperparameters: dict[str, Any]


def _no_file(file_id: str) -> Path:
    """The resolver of jobs that cannot name files."""
    raise DataError(f"no file is known here, found {file_id!r}")


def recipe_for_job(
    *,
    method: str,
    hyperparameters: dict[str, Any],
    start: ModelSource,
    train_file: Path,
    validation_file: Path | None,
    train_rows: int,
    validation_rows: int = 0,
    seed: int,
    output_dir: Path,
    resolve_model: ResolveModel,
    resolve_file: ResolveFile = _no_file,
    report_to: Sequence[Mapping[str, Any]] = (),
    on_gpu: bool | None = None,
    templates: Path | None = None,
    references: Path | None = None,
    tokens: Path | None = None,
) -> JobSpec:
    """The recipe of a job. Raises RecipeError with paths such as `method.f_dpo.hyperparameters.beta`.

    `start` is the model to train: a base model, or a fine-tuned model, which keeps its form: an adapter's rank and
    alpha stay, and a fully trained model is trained with all weights. `resolve_model` finds the models that
    hyperparameters name, such as a teacher, and `resolve_file` the files. `validation_rows` is the number of rows of
    `validation_file`; an "auto" interval of evaluations depends on it. `report_to` are the recipe's trackers.
    `on_gpu` tells whether training runs on a GPU; by default, whether this machine has one. `templates` is a folder
    of chat templates that jobs may name beside TRL's. `references` is the folder of the reference's log-probs that
    the project's jobs share, `tokens` that of their rows' token ids.
    """
    given = parse_hyperparameters(method, hyperparameters)
    spec, prefix = METHODS[method], f"method.{method}.hyperparameters"
    values = given.model_dump() | _fixed_by_start(given, start, prefix)
    asked = None if given.max_length == "auto" else given.max_length
    try:
        values["max_length"] = length_within(Path(start.path), asked, LENGTH)
    except ValueError as error:
        raise RecipeError([FieldIssue(f"{prefix}.max_length", str(error))]) from error
    if validation_file is not None and given.validation_split is not None:
        found = "expected none beside a validation file"
        raise RecipeError([FieldIssue(f"{prefix}.validation_split", found)])
    held_out = validation_file or given.validation_split
    if given.validation_split is not None:  # train_rows are those that are left
        validation_rows = round(train_rows * given.validation_split / (1 - given.validation_split))
    resolved = _resolve_auto(values, spec, train_rows, has_validation=held_out is not None)
    resolved |= _watching(resolved, given, train_rows, validation_rows, has_validation=held_out is not None)
    resolved |= _for_device(resolved, has_gpu() if on_gpu is None else on_gpu)
    shared = _shared(resolved)
    template = _chat_template(given, start, prefix, templates)
    context = JobContext(resolved, resolve_model, resolve_file, spec.learning_rate)
    method_section = _method_section(context, spec, prefix)
    try:
        recipe = Recipe.parse(
            {
                "model": {"path": start.path, "adapter": start.adapter, "chat_template": template}
                | shared["model"],
                "data": _data_section(resolved, train_file, held_out)
                | shared["data"]
                | {"token_folder": None if tokens is None else str(tokens)},
                "method": method_section,
                "terms": _terms(context, prefix),
                "tune": resolved.get(TUNE),
                "elastic": resolved["elastic"],
                "lora": _lora_section(resolved, shared["lora"]),
                "training": shared["training"]
                | _training_section(resolved, spec.learning_rate)
                | {"report_to": list(report_to)}
                | {"reference_folder": None if references is None else str(references)},
                "collapse_guard": {
                    "on_collapse": resolved["on_collapse"],
                    "max_new_tokens": resolved.pop(GUARD_TOKENS),
                },
                "after": resolved["after"] or [],
                "seed": seed,
                "output_dir": str(output_dir),
            }
        )
        require_layers(recipe, gpu=has_gpu() if on_gpu is None else on_gpu, here=on_gpu is None)
    except RecipeError as error:
        raise RecipeError([_as_job_names_it(issue, prefix) for issue in error.issues]) from error
    if recipe.training.reference_store == "auto":
        resolved["reference_store"] = "on" if worth_storing(recipe, train_rows) else "off"
        training = recipe.training.model_copy(update={"reference_store": resolved["reference_store"]})
        recipe = recipe.model_copy(update={"training": training})
    return JobSpec(recipe, _echoed(recipe, resolved))


def settled(spec: JobSpec, recipe: Recipe) -> JobSpec:
    """The job with values for more of its `auto` options, taken from `recipe`; its hyperparameters show them."""
    values = {
        given: getattr(getattr(recipe, section), name)
        for given, (section, name) in shared_options().items()
        if getattr(recipe, section) is not None
    }
    return JobSpec(recipe, _echoed(recipe, spec.hyperparameters | to_jsonable_python(values)))


def _echoed(recipe: Recipe, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that mean something for this job."""
    return {
        name: value
        for name, value in resolved.items()
        if value is not None and not (recipe.lora is None and name.startswith("lora_"))
    }


def _for_device(resolved: Mapping[str, Any], on_gpu: bool) -> dict[str, Any]:  # noqa: FBT001
    """The shared options that follow from the kind of device alone; the rest of "auto" depends on its memory."""
    found: dict[str, Any] = {}
    if resolved["dtype"] == "auto":
        found["dtype"] = loaded_dtype(gpu=on_gpu, frozen=resolved["trained_weights"] == "lora")
    if resolved["mixed_precision"] == "auto" and not (on_gpu or has_amx()):
        found["mixed_precision"] = "no"
    return found


def _shared(resolved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Section -> option -> value of the options that every method shares."""
    found: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for given, (section, name) in shared_options().items():
        found[section][name] = resolved[given]
    return found


def _as_job_names_it(issue: FieldIssue, prefix: str) -> FieldIssue:
    """A refusal of the recipe at the hyperparameter that it came from."""
    names = {f"{section}.{name}": given for given, (section, name) in shared_options().items()}
    for one in (issue, _at_its_option(issue)):
        if one.path in names:
            return FieldIssue(f"{prefix}.{names[one.path]}", one.message)
        if one.path.partition(".")[0] in {TERMS, TUNE, "elastic", "after"}:
            return FieldIssue(f"{prefix}.{one.path}", one.message)
    return FieldIssue(prefix, issue.message) if issue.path in {"model", "lora", "training"} else issue


def _at_its_option(issue: FieldIssue) -> FieldIssue:
    """The issue at the option that its message begins with, as `lora.nested: expected …` does."""
    option, colon, rest = issue.message.partition(": ")
    if not colon or not _OPTION.fullmatch(option):
        return issue
    return FieldIssue(f"{issue.path}.{option}".strip("."), rest)


_OPTION = re.compile(r"[a-z_]+(\.\w+)*")


def parse_hyperparameters(method: str, values: dict[str, Any]) -> Hyperparameters:
    """The hyperparameters of a job as they are given; raises RecipeError, with the paths of a job."""
    if method not in METHODS:
        expected = f"expected one of {', '.join(METHODS)}, found {method!r}{nearest_method(method)}"
        raise RecipeError([FieldIssue("method.type", expected)])
    kind = hyperparameters_of(METHODS[method])
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        prefix = f"method.{method}.hyperparameters"
        issues = one_a_field(field_issues(error, prefix, lambda _: kind.model_fields))
        raise RecipeError([replace(one, path=_TERM_TAG.sub(r"\1", one.path)) for one in issues]) from error


_TERM_TAG = re.compile(r"(terms\.\d+)\.[a-z_]+(?=\.)")
"""The place of a term's option; pydantic adds the term's type after its index."""


def _fixed_by_start(given: Hyperparameters, start: ModelSource, prefix: str) -> dict[str, Any]:
    """The hyperparameters that a fine-tuned start model determines. Raises RecipeError if given ones disagree."""
    if start.trained_weights is None:
        return {}
    own: dict[str, Any] = {"trained_weights": start.trained_weights}
    if start.adapter is not None:
        try:
            lora = lora_of(Path(start.adapter))
        except ModelError as error:
            raise RecipeError([FieldIssue("model", "its adapter cannot be read")]) from error
        own |= {"lora_rank": lora.r, "lora_alpha": lora.alpha}
        own |= {
            given: getattr(lora, name)
            for given, (section, name) in shared_options().items()
            if section == "lora" and name not in OF_TRAINING
        }
    elif not (Path(start.path) / "config.json").is_file():
        raise RecipeError([FieldIssue("model", "its weights cannot be read")])
    issues = [
        FieldIssue(
            f"{prefix}.{name}",
            f"expected {own.get(name, 'none')!r}, as in the model that training starts from, "
            f"found {getattr(given, name)!r}",
        )
        for name in ("trained_weights", "lora_rank", "lora_alpha", "lora_dropout", "lora_rslora")
        if name in given.model_fields_set and getattr(given, name) not in {None, own.get(name)}
    ]
    if issues:
        raise RecipeError(issues)
    return own


def _auto_batch(rows: int) -> int:
    """A power of two near 1/32 to 1/64 of the rows, so that an epoch has that many steps, within the bounds."""
    return min(max(SMALLEST_BATCH, 2 ** (rows.bit_length() - 6)), LARGEST_BATCH, rows)


def _resolve_auto(
    values: dict[str, Any], spec: type[Method], rows: int, *, has_validation: bool
) -> dict[str, Any]:
    resolved = dict(values)
    batch = resolved["batch_size"]
    if batch == "auto":
        batch = _auto_batch(max(rows, 1))
        gpus = resolved["gpus"]
        batch = resolved["batch_size"] = -(-batch // gpus) * gpus
    defaults = {
        "n_epochs": max(1, min(MOST_EPOCHS, round(STEPS_WANTED * batch / max(rows, 1)))),
        "learning_rate_multiplier": 1.0,
        **{
            name: field.default
            for name, field in spec.own_options().items()
            if (mark := mark_of(field, InJobs)) is not None and mark.auto
        },
    }
    for name, value in defaults.items():
        if resolved[name] == "auto":
            resolved[name] = value
    if resolved["keep_best"] == "auto":
        resolved["keep_best"] = has_validation and not resolved.get(TUNE)
    resolved["lora_alpha"] = resolved["lora_alpha"] or 2.0 * resolved["lora_rank"]
    return resolved


def _watching(
    resolved: Mapping[str, Any],
    given: Hyperparameters,
    rows: int,
    held_out_rows: int,
    *,
    has_validation: bool,
) -> dict[str, Any]:
    """The interval of evaluations, and the length of the guard's answers under GUARD_TOKENS."""
    steps, an_epoch = steps_of(rows, resolved["batch_size"], resolved["n_epochs"], resolved["max_steps"])
    watching = Watching(steps, resolved["batch_size"], held_out_rows, CollapseGuardSection().prompts)
    interval = resolved["eval_interval"]
    if interval == "auto":
        early = given.early_stopping
        patience = None if early is None else early.patience
        interval = watching.interval(an_epoch, patience) if has_validation else None
    evaluations = math.ceil(steps / interval) if interval else 1
    return {"eval_interval": interval, GUARD_TOKENS: watching.guard_tokens(evaluations)}


def _data_section(resolved: dict[str, Any], train: Path, held_out: Path | float | None) -> dict[str, Any]:
    return {
        "train": str(train),
        "validation": str(held_out) if isinstance(held_out, Path) else held_out,
        "max_length": resolved["max_length"],
        "columns": resolved["columns"] or {},
        "skip_bad": resolved["skip_bad"] or False,
    }


def _chat_template(
    given: Hyperparameters, start: ModelSource, prefix: str, templates: Path | None
) -> str | None:
    """The template that the job names, or the one that its model was trained with."""
    if given.chat_template is None:
        return start.chat_template
    try:
        return named(given.chat_template, templates)
    except ModelError as error:
        raise RecipeError([FieldIssue(f"{prefix}.chat_template", str(error))]) from error


def _lora_section(resolved: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any] | None:
    if resolved["trained_weights"] == "all":
        return None
    return {"r": resolved["lora_rank"], "alpha": resolved["lora_alpha"]} | shared


def _training_section(resolved: dict[str, Any], learning_rate: float) -> dict[str, Any]:
    if resolved["trained_weights"] == "all":
        learning_rate *= ALL_WEIGHTS_RATE
    rate = resolved["learning_rate"] or learning_rate * resolved["learning_rate_multiplier"]
    return {
        "epochs": resolved["n_epochs"],
        "max_steps": resolved["max_steps"],
        "batch_size": resolved["batch_size"],
        "learning_rate": rate,
        "warmup_steps": resolved["warmup_steps"],
        "eval_steps": resolved["eval_interval"],
        "save_steps": resolved["checkpoint_interval"],
        "save_total_limit": resolved["save_total_limit"],
    }


def _method_section(context: JobContext, spec: type[Method], prefix: str) -> Method:
    """The recipe's method section, from the hyperparameters and the marks on the method's fields."""
    resolved = context.hyperparameters
    options = {name: field for name, field in spec.own_options().items() if in_jobs(field)}
    values = {}
    for name, field in options.items():
        given = job_name(name, field)
        mark = mark_of(field, GivenAs)
        try:
            values[name] = resolved[given] if mark is None else mark.convert(resolved[given], context)
        except ModelError as error:
            raise RecipeError([FieldIssue(f"{prefix}.{given}", str(error))]) from error
    try:
        return spec.model_validate(values)
    except ValidationError as error:
        renamed = {name: job_name(name, field) for name, field in options.items()}
        issues = [issue if issue.path else _at_its_option(issue) for issue in field_issues(error)]
        raise RecipeError(
            [
                FieldIssue(f"{prefix}.{renamed.get(i.path, i.path)}".removesuffix("."), i.message)
                for i in issues
            ]
        ) from error


def _terms(context: JobContext, prefix: str) -> list[dict[str, Any]]:
    """The recipe's terms, from the job's and the marks on their fields."""
    given = context.hyperparameters.get(TERMS) or ()
    return [_term(one, context, f"{prefix}.{TERMS}.{at}") for at, one in enumerate(given)]


def _term(given: Mapping[str, Any], context: JobContext, place: str) -> dict[str, Any]:
    values = {"type": given["type"]}
    for name, field in terms.get(given["type"]).own_options().items():
        if not in_jobs(field):
            continue
        mark, named = mark_of(field, GivenAs), job_name(name, field)
        try:
            values[name] = given[named] if mark is None else mark.convert(given[named], context)
        except (ModelError, DataError) as error:
            raise RecipeError([FieldIssue(f"{place}.{named}", str(error))]) from error
    return values
