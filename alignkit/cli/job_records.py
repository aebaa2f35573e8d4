"""`alignkit jobs events | metrics | logs`: what a job reported and wrote."""

import math
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from alignkit.cli import output, service
from alignkit.cli.naming import named

JOBS = "/fine_tuning/jobs"
JobId = Annotated[str, typer.Argument(help="id of the job", callback=named)]


class EventType(StrEnum):
    """The type of an event."""

    MESSAGE = "message"
    METRICS = "metrics"


def path_of(job_id: str) -> str:
    """The path of a job's object."""
    return f"{JOBS}/{quote(job_id, safe='')}"


def retrieve(client: Any, job_id: str) -> dict[str, Any]:
    """The API's object of a job."""
    job: dict[str, Any] = service.get(client, path_of(job_id))
    return job


def events(
    job_id: JobId,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="maximum number of events, the newest")] = 50,
    type: Annotated[EventType | None, typer.Option(help="only events of this type")] = None,  # noqa: A002 - the API's name
    as_json: Annotated[bool, output.as_json("an array of the API's event objects, oldest first")] = False,
) -> None:
    """Show a job's last events, oldest first."""
    query = {} if type is None else {"type": type.value}
    found = service.first(service.connect(), f"{path_of(job_id)}/events", limit, **query)[::-1]
    if as_json:
        output.show_json(found)
        return
    for event in found:
        level = "" if event["level"] == "info" else f"{event['level']}: "
        line = f"{output.moment(event['created_at'])}  {level}{event['message']}"
        output.say(line, style=output.LEVELS.get(event["level"]))


def metrics(
    job_id: JobId,
    name: Annotated[list[str] | None, typer.Option(help="only this metric; repeatable")] = None,
    max_points: Annotated[
        int, typer.Option(min=4, max=10_000, help="maximum points per series; minima and maxima are kept")
    ] = 1000,
    as_json: Annotated[bool, output.as_json("the API's metrics object, with every series")] = False,
) -> None:
    """Show a job's metrics: first, last, lowest and highest value of each."""
    path, names = f"{path_of(job_id)}/metrics", ",".join(name or ()) or None
    found = service.get(service.connect(), path, names=names, max_points=max_points)
    if as_json:
        output.show_json(found)
        return
    if not found["series"]:
        output.note("no metrics yet")
    else:
        output.rows(
            ("metric", "points", "first", "last", "lowest", "highest"),
            (_summary(name, series) for name, series in found["series"].items()),
        )


def _summary(name: str, series: dict[str, Any]) -> tuple[str, ...]:
    steps, values = series["steps"], series["values"]
    finite = [point for point in zip(values, steps, strict=True) if _is_finite(point[0])]
    extremes = (
        [f"{output.number(value)} at {step}" for value, step in (min(finite), max(finite))] if finite else []
    )
    ends = (output.number(values[0]), output.number(values[-1]))
    return (name, f"{series['total_points']:,}", *ends, *(extremes or ("-", "-")))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def logs(
    job_id: JobId,
    tail: Annotated[int, typer.Option(min=1, max=1000, help="maximum number of lines, the last ones")] = 100,
    as_json: Annotated[bool, output.as_json("the API's log object: lines and has_more")] = False,
) -> None:
    """Show the end of a job's training log, without the server's paths and secrets."""
    found = service.get(service.connect(), f"{path_of(job_id)}/logs", tail=tail)
    if as_json:
        output.show_json(found)
        return
    for line in found["lines"]:
        output.say(line)
    if not found["lines"]:
        output.note("there is no log: the job has not started, or its folder was pruned")
