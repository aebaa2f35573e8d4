"""Turns a request into a job that can run; every check that can refuse it runs here, before anything is stored.

model -> trackers -> method -> files -> their contents -> recipe
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignkit import estimate
from alignkit.adapter_sections import LoraSection
from alignkit.errors import DataError, ModelError, RecipeError
from alignkit.jobspec import JobSpec, parse_hyperparameters, recipe_for_job, settled
from alignkit.methods import METHODS, ModelSource, ResolveModel, names_of_models
from alignkit.methods.hyperparameters import TERMS, files_of_terms, models_of_terms
from alignkit.methods.registry import nearest_method
from alignkit.models.stored_weights import require_whole
from alignkit.models.trainable import OF_EXPERTS, config_of, is_mixture, require_trainable
from alignkit.recipe import Recipe
from alignkit.tracking import how_to_install, installed
from alignkit_server.catalog.model_catalog import TrainableModel
from alignkit_server.engines.lora_support import serves_adapters
from alignkit_server.engines.serving import AS_ADAPTER
from alignkit_server.errors import ApiError, at_most, shorten
from alignkit_server.executors.registry import job_device, job_gpus, trains_on_gpu
from alignkit_server.ids import JOB, new_id
from alignkit_server.jobs.data_files import SUPERVISED, FileChecks, Reading, files_in_terms
from alignkit_server.jobs.mergeable import require_mergeable
from alignkit_server.jobs.schemas import MAX_SEED, JobRequest
from alignkit_server.keys.service import Principal
from alignkit_server.services import Services
from alignkit_server.settings import Settings
from alignkit_server.tokenizers import has_tokenizer


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job whose model, files and hyperparameters have been checked."""

    id: str
    request: JobRequest
    base_model: str
    start_model: str | None
    """Name of the fine-tuned model or checkpoint that training starts from; None for a base model."""
    fine_tuned_models: tuple[str, ...]
    """All fine-tuned models that the job needs until it has finished."""
    files_of_terms: tuple[str, ...]
    """Ids of the files that its terms name."""
    seed: int
    method: str
    hyperparameters: dict[str, Any]
    recipe: dict[str, Any]
    train_rows: int
    notices: tuple[str, ...]


@contextmanager
def _told_of(request: JobRequest) -> Iterator[None]:
    """The ApiError (400) for a RecipeError; it names the place in the request."""
    try:
        yield
    except RecipeError as error:
        message, param = at_most([str(issue) for issue in error.issues]), error.issues[0].path or "method"
        if request.method is None:  # name the place where the values were given
            message, param = (text.replace(f"method.{SUPERVISED}.", "") for text in (message, param))
        raise ApiError(400, message, param=param, code="invalid_hyperparameters") from error


def prepare(
    request: JobRequest,
    project: Principal,
    services: Services,
    *,
    renders: bool = False,
    checks: FileChecks | None = None,
) -> PreparedJob:
    """Check a request and build its job. Raises ApiError that names the parameter at fault.

    With `renders`, rows are also checked as rendered token ids, if the model has a tokenizer. With `checks`, what an
    earlier job of it has read is not read again.
    No transaction is open meanwhile, because reading large data files takes seconds.
    """
    model = _model(request.model, project, services)
    trackers = _trackers(request)
    method, given = _method(request)
    with _told_of(request):
        reading = Reading.of(method, parse_hyperparameters(method, given), project, services)
    checks = checks or FileChecks()
    files = checks.checked(request, reading, project, services)
    rows = files.training.kept_rows
    given = _with_gpus(given, method, services)
    job_id = new_id(JOB)
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    with _told_of(request):
        spec = recipe_for_job(
            method=method,
            hyperparameters=given,
            start=model.source,
            train_file=files.training.path,
            validation_file=files.validation.path if files.validation else None,
            train_rows=round(rows * (1 - reading.held_out)),
            validation_rows=files.validation.kept_rows if files.validation else 0,
            seed=seed,
            output_dir=services.settings.jobs_dir / job_id,
            resolve_model=_resolver(project, services),
            resolve_file=files_in_terms(project, services),
            report_to=trackers,
            on_gpu=trains_on_gpu(services.settings),
            templates=services.settings.templates_dir,
            references=services.settings.references_dir / project.project_id,
            tokens=services.settings.tokens_dir / project.project_id,
        )
    _require_trainable(spec.recipe, request.model, method)
    _require_servable(spec.recipe, request.model, model.base_model, method, services)
    require_mergeable(request.serving or AS_ADAPTER, spec.recipe, model.base_model, services.settings)
    spec = _settled(spec, request.model, rows, services, checks)
    if renders and has_tokenizer(Path(spec.recipe.model.path)):
        files = checks.rendered(files, reading, spec.recipe, request.model)
    return PreparedJob(
        id=job_id,
        request=request,
        base_model=model.base_model,
        start_model=None if request.model == model.base_model else request.model,
        fine_tuned_models=_fine_tuned(
            services,
            request.model,
            *map(spec.hyperparameters.get, names_of_models(METHODS[method])),
            *models_of_terms(spec.hyperparameters.get(TERMS)),
        ),
        files_of_terms=tuple(sorted(set(files_of_terms(spec.hyperparameters.get(TERMS))))),
        seed=seed,
        method=method,
        hyperparameters=spec.hyperparameters,
        recipe=spec.recipe.model_dump(mode="json"),
        train_rows=files.training.kept_rows,
        notices=(
            *_tracker_notices(trackers),
            *_context_notices(spec.recipe, model.base_model, services.settings),
            *_probe_notices(spec.recipe),
            *files.notices(),
        ),
    )


def _with_gpus(given: dict[str, Any], method: str, services: Services) -> dict[str, Any]:
    """The hyperparameters with a job's usual GPUs; 400 for more than there are, or a batch that they cannot share."""
    given = {"gpus": services.settings.gpus_per_job} | given
    gpus, batch, most = given["gpus"], given.get("batch_size"), job_gpus(services.settings)
    if not isinstance(gpus, int) or gpus <= 1:
        return given
    if most is not None and gpus > max(1, most):
        raise _refused(
            method, "gpus", f"expected at most {max(1, most)}, which this server has for a job, found {gpus}"
        )
    if isinstance(batch, int) and batch % gpus:
        raise _refused(method, "batch_size", f"expected a multiple of {gpus} GPUs, found {batch}")
    return given


def _refused(method: str, name: str, message: str) -> ApiError:
    param = f"method.{method}.hyperparameters.{name}"
    return ApiError(400, f"{param}: {message}.", param=param, code="invalid_hyperparameters")


def _settled(spec: JobSpec, model: str, rows: int, services: Services, checks: FileChecks) -> JobSpec:
    """The job with its "auto" options chosen for its device. Raises ApiError (400) if it cannot fit.

    For a job that trains on another machine, the trainer chooses them when it starts.
    """
    device = job_device(services.settings)
    if device is None:
        return spec
    count = spec.recipe.training.devices
    try:
        lengths = checks.lengths(spec.recipe, rows, model)
        stages = None if count == 1 else ["ddp", *(["zero2", "zero3"] if find_spec("deepspeed") else [])]
        found = estimate.fit(spec.recipe, lengths, device=device, count=count, stages=stages)
        recipe = found.recipe
        if count > 1 and found.estimate is not None:
            training = recipe.training.model_copy(update={"sharding": found.estimate.stage})
            recipe = recipe.model_copy(update={"training": training})
        return settled(spec, recipe)
    except DataError:  # rows that cannot be rendered are refused with their number
        return spec
    except estimate.EstimateError:
        return settled(spec, estimate.without_estimate(spec.recipe, gpu=device.is_gpu, processes=count))
    except RecipeError as error:
        param = f"method.{spec.recipe.method.type}.hyperparameters.micro_batch_size"
        message = f"{param}: {error.issues[0].message}."
        raise ApiError(400, message, param=param, code="does_not_fit") from error


def _trackers(request: JobRequest) -> list[dict[str, Any]]:
    """The recipe's trackers for the requested integrations. Raises 400 if one is not installed on this server."""
    asked = [integration.model_dump() for integration in request.integrations or []]
    if missing := [tracker["type"] for tracker in asked if not installed(tracker["type"])]:
        commands = " and ".join(f"`{command}`" for command in sorted(set(map(how_to_install, missing))))
        raise ApiError(
            400,
            f"integrations: {', '.join(missing)} {'are' if missing[1:] else 'is'} not installed on this server; "
            f"remove it from the request, or ask the server's operator to run {commands}.",
            param="integrations",
            code="integration_unavailable",
        )
    return [{"type": tracker["type"]} | tracker.get(tracker["type"], {}) for tracker in asked]


def _tracker_notices(trackers: list[dict[str, Any]]) -> Iterator[str]:
    """Say before the run what would be lost: wandb without a key reports nothing."""
    logged_in = "WANDB_API_KEY" in os.environ or os.environ.get("WANDB_MODE") in {"offline", "disabled"}
    if "wandb" in {tracker["type"] for tracker in trackers} and not (logged_in or _has_netrc_entry()):
        yield "wandb has no API key on this server and gets nothing: ask the server's operator to set WANDB_API_KEY"


def _context_notices(recipe: Recipe, base_model: str, settings: Settings) -> Iterator[str]:
    """Say before the run that its model will be served with a shorter context than it is trained on."""
    served = settings.engine.of(base_model).max_model_len
    if base_model not in settings.engine.urls and served is not None and served < recipe.data.max_length:
        yield (
            f"rows are trained up to max_length {recipe.data.max_length:,}, but the engine of {base_model} serves a "
            f"context of {served:,} tokens: for longer ones ask the server's operator to raise "
            "ALIGNKIT_ENGINE__MAX_MODEL_LEN"
        )


def _probe_notices(recipe: Recipe) -> Iterator[str]:
    """Say before the run that its model will be worth less than its data."""
    if (probe := recipe.data.flip) is not None:
        yield f"flip swaps the answers of {probe.share:.0%} of the training pairs, which spoils the model for any use"


def _has_netrc_entry() -> bool:
    """Whether `wandb login` has stored a key for this server's user."""
    try:
        return "wandb" in (Path.home() / ".netrc").read_text(encoding="utf-8")
    except (OSError, RuntimeError, UnicodeDecodeError):
        return False


def _resolver(project: Principal, services: Services) -> ResolveModel:
    """A function that finds models named in hyperparameters among those the project may use."""

    def resolve(name: str) -> ModelSource:
        try:
            return services.catalog.trainable(name, project.project_id).source
        except ApiError as error:
            raise ModelError(error.detail.message) from error

    return resolve


def _require_trainable(recipe: Any, model: str, method: str) -> None:
    """Refuse a model or teacher that would fail when it is loaded."""
    teacher = getattr(recipe.method, "teacher", None)
    checks = [("model", model, recipe.model.path, recipe.lora is None)]
    if teacher is not None:
        checks.append((f"method.{method}.hyperparameters.teacher", "teacher", teacher.path, False))
    for param, name, path, all_weights in checks:
        try:
            require_trainable(config_of(Path(path)), all_weights=all_weights)
            require_whole(Path(path))
        except ModelError as error:
            message = f"{param}: {name} cannot be used: {error}."
            raise ApiError(400, message, param=param, code="model_not_trainable") from error


def _require_servable(recipe: Any, model: str, base_model: str, method: str, services: Services) -> None:
    """Refuse a job whose result could not be served, before hours of training."""
    if recipe.lora is None:
        return
    elsewhere = base_model in services.settings.engine.urls
    config = config_of(Path(recipe.model.path))
    if not elsewhere and serves_adapters(config) is False:
        raise ApiError(
            400,
            f"model: the engine serves no LoRA adapters of {config['architectures'][0]}, which {model} is; expected "
            f"method.{method}.hyperparameters.trained_weights 'all', or another model.",
            param="model",
            code="model_not_servable",
        )
    _require_no_experts(recipe.lora, config, method)
    most = services.settings.engine.max_lora_rank
    rank = recipe.saved_rank or 0
    found = f"{rank} with that of tune" if recipe.tune is not None else rank
    if rank > most:
        param = f"method.{method}.hyperparameters.lora_rank"
        raise ApiError(
            400,
            f"{param}: expected at most {most}, the rank that this server serves, found {found}.",
            param=param,
            code="invalid_hyperparameters",
        )


def _require_no_experts(lora: LoraSection, config: Mapping[str, Any], method: str) -> None:
    """Refuse adapters on a mixture's experts or router: peft saves them in a form that vLLM does not load."""
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    named = [name for name in targets if name.rpartition(".")[2] in OF_EXPERTS]
    if named and is_mixture(config):
        param = f"method.{method}.hyperparameters.lora_target_modules"
        message = f"{param}: the engine serves no adapters of a mixture's experts, found {', '.join(named)}."
        raise ApiError(400, message, param=param, code="model_not_servable")


def _model(name: str, project: Principal, services: Services) -> TrainableModel:
    """The model to train. Raises 404 if it does not exist or is not ready."""
    try:
        return services.catalog.trainable(name, project.project_id)
    except ApiError as error:
        if error.detail.code != "model_not_found":
            raise
        raise _no_model(name, services.catalog.bases()) from error


def _fine_tuned(services: Services, *names: str | None) -> tuple[str, ...]:
    """The fine-tuned models among `names`, sorted so that two requests lock them in the same order."""
    return tuple(sorted({name for name in names if name and services.catalog.base(name) is None}))


def _no_model(name: str, bases: list[str]) -> ApiError:
    there_are = (
        f"the available base models are {', '.join(bases)}" if bases else "no base model is imported yet"
    )
    return ApiError(
        404,
        f"The model {shorten(name)} does not exist or cannot be fine-tuned: {there_are}.",
        param="model",
        code="model_not_found",
    )


def _method(request: JobRequest) -> tuple[str, dict[str, Any]]:
    """The method's name and the given hyperparameters; without a method, supervised as in OpenAI's API."""
    method, known = request.method, ", ".join(METHODS)
    if method is None:
        return SUPERVISED, request.hyperparameters or {}
    if request.hyperparameters is not None:
        raise ApiError(
            400,
            f"hyperparameters: with `method` given, expected them under method.{method.type}.hyperparameters.",
            param="hyperparameters",
            code="invalid_value",
        )
    if method.type not in METHODS:
        raise ApiError(
            400,
            f"method.type: expected one of {known}, found {shorten(method.type)}"
            f"{nearest_method(method.type) or '.'}",
            param="method.type",
            code="invalid_value",
        )
    _refuse_others("method", method.model_extra or {}, method.type)
    section = (method.model_extra or {}).get(method.type)
    given = _object(f"method.{method.type}", section)
    _refuse_others(f"method.{method.type}", given, "hyperparameters")
    return method.type, _object(f"method.{method.type}.hyperparameters", given.get("hyperparameters"))


def _object(path: str, value: object) -> dict[str, Any]:
    """An optional object of the request; empty if it is missing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(
            400, f"{path}: expected an object, found {shorten(value)}.", param=path, code="invalid_value"
        )
    return value


def _refuse_others(path: str, given: dict[str, Any], only: str) -> None:
    for key, value in given.items():
        if key != only and value is not None:  # client libraries send null for unset fields
            raise ApiError(
                400,
                f"Unknown parameter: {f'{path}.{key}'!r}; expected only {only!r} there.",
                param=f"{path}.{key}",
                code="unknown_parameter",
            )
