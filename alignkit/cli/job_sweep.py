"""`alignkit jobs sweep`: a job at every combination of some hyperparameters."""

import secrets
from contextlib import suppress
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
MOST_COMPARED = 24
"""Jobs that the page compares at once."""


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
    name: Annotated[str | None, typer.Option(help="the sweep's name; default: made up")] = None,
    metadata: Labels = None,
    as_json: Annotated[bool, output.as_json("{sweep, compare, jobs: [{job, values}]}")] = False,
) -> None:
    """Create a job at every combination of some values; prints each job's id and values, and where to compare them.

    The jobs are ordinary ones, with the sweep's name as metadata. If the service refuses one, none is left.
    """
    points = points_of(vary)
    name = name or f"sweep-{secrets.token_hex(4)}"
    client, made = service.connect(), []
    with uploaded(client, training_file, validation_file) as files:
        try:
            for number, values in enumerate(points, start=1):
                rest = method_of(method, param, validation_share, validation_file)
                rest["method"][method]["hyperparameters"] |= values
                label = ", ".join(f"{key} {value}" for key, value in values.items())
                labels = labels_of(metadata) | {"sweep": name, "name": f"{number}: {label}"[:512]}
                once = {"Idempotency-Key": secrets.token_hex()}  # the client asks again if an answer is lost
                made.append(
                    client.fine_tuning.jobs.create(
                        model=model, **files, **rest, metadata=labels, extra_headers=once
                    ).id
                )
        except BaseException:
            for job_id in made:
                with suppress(Exception):  # the first error is the one to show
                    client.fine_tuning.jobs.cancel(job_id)
            raise
    page = str(client.base_url).rstrip("/").removesuffix("/v1")
    compare = f"{page}/#/compare?jobs={','.join(made[:MOST_COMPARED])}"
    if as_json:
        jobs = [{"job": job_id, "values": values} for job_id, values in zip(made, points, strict=True)]
        output.show_json({"sweep": name, "compare": compare, "jobs": jobs})
        return
    rows = ([job_id, *map(str, values.values())] for job_id, values in zip(made, points, strict=True))
    output.rows(("job", *points[0]), rows)
    output.note(f"Compare: {compare}")


def points_of(vary: list[str]) -> list[dict[str, Any]]:
    """The values of each job. Raises AlignkitError for too many jobs, and for an option twice or without values."""
    options: dict[str, list[Any]] = {}
    for text in vary:
        key, values = pair("--vary", text, "beta=0.05,0.1")
        if key in options:
            raise AlignkitError(f"--vary {text}: {key} is given twice")
        options[key] = [value_of(value) for value in values.split(",") if value]
    try:
        from alignkit.sweep import sweep_of  # saves pydantic at start-up

        points = sweep_of(options, "--vary").points()
    except RecipeError as error:
        raise AlignkitError("; ".join(map(str, error.issues))) from error
    if len(points) > MOST_JOBS:
        raise AlignkitError(f"--vary: expected at most {MOST_JOBS} jobs, found {len(points)}")
    return [point.values for point in points]
