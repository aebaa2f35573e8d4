"""Turns a sweep's request into its jobs. Every one is checked before any is stored."""

import secrets
from dataclasses import dataclass

from alignkit.errors import RecipeError
from alignkit.estimate import run_steps
from alignkit.recipe import Recipe
from alignkit.sweep import Halving, Point, SweepSpec, sweep_of
from alignkit_server.errors import ApiError, at_most
from alignkit_server.ids import SWEEP, new_id
from alignkit_server.jobs.data_files import FileChecks
from alignkit_server.jobs.preparation import PreparedJob, prepare
from alignkit_server.jobs.schemas import MAX_SEED, JobRequest
from alignkit_server.keys.service import Principal
from alignkit_server.services import Services
from alignkit_server.sweeps.schemas import MOST_JOBS, SweepRequest

SCHEDULES = ("n_epochs", "validation_split")
"""Hyperparameters under which the metrics of two jobs at one step cannot be compared."""


@dataclass(frozen=True, slots=True)
class PreparedSweep:
    """A sweep whose jobs have all been checked."""

    id: str
    request: SweepRequest
    spec: SweepSpec
    jobs: tuple[tuple[Point, PreparedJob], ...]


def prepare_sweep(request: SweepRequest, project: Principal, services: Services) -> PreparedSweep:
    """Check a request and build its jobs. Raises ApiError that names the parameter at fault.

    Files are read once for all jobs that read them alike.
    """
    spec = _spec(request)
    sweep_id, checks = new_id(SWEEP), FileChecks()
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    jobs = []
    for number, point in enumerate(spec.points(), start=1):
        labels = {"sweep": sweep_id, "name": f"{number}: {point.label()}"[:512]}
        asked = _request_of(request, point, seed, labels)
        with _named(request, point):
            prepared = prepare(asked, project, services, renders=True, checks=checks)
        if spec.halving is not None:
            _require_comparable(spec.halving, prepared)
            prepared.recipe["training"]["pause_at"] = spec.halving.rungs[0]
        jobs.append((point, prepared))
    return PreparedSweep(sweep_id, request, spec, tuple(jobs))


def _spec(request: SweepRequest) -> SweepSpec:
    try:
        spec = sweep_of(request.sweep, most=MOST_JOBS)
    except RecipeError as error:
        raise _refused(error.issues[0].path, at_most([str(issue) for issue in error.issues])) from error
    varied = [name for name in SCHEDULES if name in spec.options]
    if spec.halving is not None and varied:
        path = f"sweep.{varied[0]}"
        raise _refused(path, f"{path}: cannot vary: jobs that are compared at a step must agree in it.")
    return spec


def _request_of(request: SweepRequest, point: Point, seed: int, labels: dict[str, str]) -> JobRequest:
    """The request of one job: the sweep's, with the point's values among its hyperparameters."""
    values = request.model_dump(exclude={"sweep"}, exclude_none=True)
    values |= {"seed": seed, "metadata": labels | (request.metadata or {})}
    method = values.get("method")
    if method is None:
        values["hyperparameters"] = (request.hyperparameters or {}) | point.values
    else:
        section = method.get(method["type"]) or {}
        if isinstance(section, dict) and isinstance(section.get("hyperparameters") or {}, dict):
            given = (section.get("hyperparameters") or {}) | point.values
            method[method["type"]] = section | {"hyperparameters": given}
    return JobRequest.model_validate(values)


class _named:  # noqa: N801 - a context manager, used like a function
    """Let an error about a value that varies name its place in `sweep`, and any error the point it is at."""

    def __init__(self, request: SweepRequest, point: Point) -> None:
        kind = "supervised" if request.method is None else request.method.type
        self._prefixes = (f"method.{kind}.hyperparameters.", "hyperparameters.", "")
        self._point = point

    def __enter__(self) -> None:
        """Begin; an ApiError in the block is raised anew."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise the error with the sweep's own names."""
        if not isinstance(error, ApiError):
            return
        detail = error.detail
        for key in self._point.values:
            for prefix in self._prefixes:
                if detail.param is not None and f"{detail.param}.".startswith(f"{prefix}{key}."):
                    param = f"sweep.{detail.param.removeprefix(prefix)}"
                    message = detail.message.replace(detail.param, param)
                    raise ApiError(error.status, message, detail.type, param, detail.code) from error
        if detail.code in {"does_not_fit", "invalid_hyperparameters"}:
            message = f"{detail.message} (at {self._point.label()})"
            raise ApiError(error.status, message, detail.type, detail.param, detail.code) from error


def _require_comparable(halving: Halving, prepared: PreparedJob) -> None:
    """Raise 400 for a metric of held-out rows without any, and for a rung that the job does not reach."""
    recipe = Recipe.model_validate(prepared.recipe)
    if halving.metric.startswith("valid_") and recipe.data.validation is None:
        path = "sweep.halving.metric"
        raise _refused(
            path, f"{path}: {halving.metric} needs a validation_file or validation_split, found none."
        )
    held_out = recipe.data.validation if isinstance(recipe.data.validation, float) else 0.0
    steps, _ = run_steps(round(prepared.train_rows * (1 - held_out)), recipe.training)
    if steps is not None and halving.rungs[-1] >= steps:
        path = "sweep.halving.rungs"
        raise _refused(
            path, f"{path}: expected steps below {steps}, the last of a job, found {halving.rungs[-1]}."
        )


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_sweep")
