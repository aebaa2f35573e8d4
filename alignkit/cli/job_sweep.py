"""`alignkit jobs sweep`: a job at every combination of some hyperparameters."""

import secrets
from typing import Annotated, Any

import typer

from alignkit.cli import output, service
from alignkit.cli.job_requests import (
    Labels,
    Method,
    Model,
    Parameters,
    TrainingFile,
    ValidationFile,
    ValidationShare,
    labels_of,
    method_of,
    pair,
    uploaded,
    value_of,
)
from alignkit.errors import AlignkitError, RecipeError

MOST_JOBS = 64
"""Jobs of a sweep; each is a job in the project's queue."""
SWEEPS = "/fine_tuning/sweeps"
SWEEP = "ftsweep-"
"""The beginning of a sweep's id."""


def sweep(
    training_file: TrainingFile,
    model: Model,
    vary: Annotated[
        list[str], typer.Option(help="a hyperparameter and its values, such as beta=0.05,0.1; repeatable")
    ],
    method: Method = "f_dpo",
    validation_file: ValidationFile = None,
    validation_share: ValidationShare = None,
    param: Parameters = None,
    halve_by: Annotated[
        str | None, typer.Option(help="stop the weak jobs early by this metric, such as valid_loss")
    ] = None,
    rungs: Annotated[
        str | None, typer.Option(help="steps at which jobs are compared, such as 50,100")
    ] = None,
    goal: Annotated[str, typer.Option(help="max or min: which value of the metric is best")] = "max",
    keep: Annotated[float, typer.Option(help="share of the jobs that goes on at each rung")] = 0.5,
    name: Annotated[
        str | None, typer.Option(help="the sweep's name in the jobs' metadata; default: its id")
    ] = None,
    metadata: Labels = None,
    as_json: Annotated[bool, output.as_json("{sweep, id, compare, jobs: [{job, values}]}")] = False,
) -> None:
    """Create a job at every combination of some values; prints each job's id and values, and where to compare them.

    The jobs are ordinary ones, with the sweep's name as metadata. If the service refuses one, none is left.
    """
    points_of(vary)
    spec = options_of(vary) | halving_of(halve_by, rungs, goal, keep)
    client = service.connect()
    with uploaded(client, training_file, validation_file) as files:
        body = {"model": model, **files, **method_of(method, param, validation_share, validation_file)}
        labels = labels_of(metadata) | ({"sweep": name} if name else {})
        made: Any = client.post(
            SWEEPS,
            body=body | {"sweep": spec} | ({"metadata": labels} if labels else {}),
            cast_to=object,
            options={"headers": {"Idempotency-Key": secrets.token_hex()}},  # the client may ask again
        )
    page = str(client.base_url).rstrip("/").removesuffix("/v1")
    compare = f"{page}/#/compare?sweep={made['id']}"
    if as_json:
        jobs = [{"job": point["job"], "values": point["values"]} for point in made["points"]]
        output.show_json({"sweep": name or made["id"], "id": made["id"], "compare": compare, "jobs": jobs})
        return
    rows = ([point["job"], *map(str, point["values"].values())] for point in made["points"])
    output.rows(("job", *made["points"][0]["values"]), rows)
    output.note(f"Sweep: {made['id']}")
    output.note(f"Compare: {compare}")


def points_of(vary: list[str]) -> list[dict[str, Any]]:
    """The values of each job. Raises AlignkitError for too many jobs, and for an option twice or without values."""
    options = options_of(vary)
    try:
        from alignkit.sweep import sweep_of  # saves pydantic at start-up

        points = sweep_of(options, "--vary").points()
    except RecipeError as error:
        raise AlignkitError("; ".join(map(str, error.issues))) from error
    if len(points) > MOST_JOBS:
        raise AlignkitError(f"--vary: expected at most {MOST_JOBS} jobs, found {len(points)}")
    return [point.values for point in points]


def options_of(vary: list[str]) -> dict[str, list[Any]]:
    """The hyperparameters that vary, and their values. Raises AlignkitError for one that is given twice."""
    options: dict[str, list[Any]] = {}
    for text in vary:
        key, values = pair("--vary", text, "beta=0.05,0.1")
        if key in options:
            raise AlignkitError(f"--vary {text}: {key} is given twice")
        options[key] = [value_of("--vary", value) for value in values.split(",") if value]
    return options


def halving_of(metric: str | None, rungs: str | None, goal: str, keep: float) -> dict[str, Any]:
    """The `halving` of a sweep; empty without one. Raises AlignkitError unless metric and rungs are both given."""
    if metric is None and rungs is None:
        return {}
    if metric is None or rungs is None:
        raise AlignkitError(
            "--halve-by and --rungs: expected both, such as --halve-by valid_loss --rungs 50,100"
        )
    try:
        steps = [int(step) for step in rungs.split(",")]
    except ValueError as error:
        raise AlignkitError(f"--rungs {rungs}: expected steps, such as 50,100") from error
    return {"halving": {"metric": metric, "goal": goal, "rungs": steps, "keep": keep}}
