"""`alignkit jobs`: fine-tuning jobs of a running service."""

import re
import time
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import typer

from alignkit.cli import job_download, job_records, job_requests, job_sweep, job_watch, output, service
from alignkit.cli.job_records import JobId
from alignkit.cli.job_requests import Labels, labels_of
from alignkit.errors import AlignkitError

app = typer.Typer(help="Fine-tuning jobs of a running service.", no_args_is_help=True)
UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds."""


class Status(StrEnum):
    """A job's status."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="maximum number of jobs")] = 20,
    status: Annotated[
        list[Status] | None, typer.Option(help="only jobs with this status; repeatable")
    ] = None,
    metadata: Labels = None,
    as_json: Annotated[bool, output.as_json("an array of the API's job objects")] = False,
) -> None:
    """List jobs, newest first."""
    labels = {f"metadata[{name}]": value for name, value in labels_of(metadata).items()}
    page = service.PAGE if status else min(limit, service.PAGE)
    every = service.each(service.connect(), job_records.JOBS, page=page, **labels)
    found = list(islice((job for job in every if not status or job["status"] in status), limit))
    if as_json:
        output.show_json(found)
        return
    output.rows(
        ("job", "status", "model", "method", "created", "", "result"),
        (
            (
                job["id"],
                job["status"],
                job["model"],
                job["method"]["type"],
                output.moment(job["created_at"]),
                outlook(job),
                job["fine_tuned_model"] or "",
            )
            for job in found
        ),
    )


@app.command()
def show(job_id: JobId, as_json: Annotated[bool, output.as_json("the API's job object")] = False) -> None:
    """Show a job: its state, its times, its result and its settings."""
    job = job_records.retrieve(service.connect(), job_id)
    if as_json:
        output.show_json(job)
        return
    tokens, error = job["trained_tokens"], job["error"]
    output.facts(
        [
            ("job", job["id"]),
            ("status", " · ".join(filter(None, (job["status"], outlook(job))))),
            ("error", f"{error['code']}: {error['message']}" if error else ""),
            ("method", job["method"]["type"]),
            ("model", job["model"]),
            ("fine-tuned model", job["fine_tuned_model"] or ""),
            ("training file", job["training_file"]),
            ("validation file", job["validation_file"] or ""),
            ("created", output.moment(job["created_at"])),
            ("finished", output.moment(job["finished_at"])),
            ("trained tokens", "" if tokens is None else f"{tokens:,}"),
            ("ran", output.duration(job["usage"]["run_seconds"]) if job["usage"]["run_seconds"] else ""),
            ("peak memory", output.size(job["usage"]["peak_memory_bytes"])),
            ("seed", str(job["seed"])),
            ("result files", " ".join(job["result_files"])),
            ("integrations", " ".join(one["type"] for one in job["integrations"] or ())),
            *(job["metadata"] or {}).items(),
        ]
    )
    settings = job["method"][job["method"]["type"]]["hyperparameters"]
    output.say("\nhyperparameters")
    output.facts((f"  {name}", str(value)) for name, value in settings.items() if value is not None)


def outlook(job: dict[str, Any]) -> str:
    """A job's place in the queue, the time it needs until it ends, or the time it took."""
    if job["queue_position"] is not None:
        return f"{job['queue_position']}. in the queue"
    if job["estimated_finish"] is not None:
        return f"{output.duration(job['estimated_finish'] - time.time())} left"
    if job["finished_at"] is not None:
        return f"took {output.duration(job['finished_at'] - job['created_at'])}"
    return ""


@app.command()
def cancel(job_id: JobId) -> None:
    """Cancel a job."""
    output.say(service.connect().fine_tuning.jobs.cancel(job_id).status)


@app.command()
def pause(job_id: JobId) -> None:
    """Pause a job: it saves its state and frees its slot."""
    output.say(service.connect().fine_tuning.jobs.pause(job_id).status)


@app.command()
def resume(job_id: JobId) -> None:
    """Put a paused job back into the queue."""
    output.say(service.connect().fine_tuning.jobs.resume(job_id).status)


@app.command()
def prune(
    older_than: Annotated[
        str, typer.Option(help="finished longer ago than this: 12h, 30d, 4w; 0d for all")
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list them")] = False,
) -> None:
    """Remove checkpoints, samples and logs of finished jobs from the service's disk. Models and events stay."""
    before, client, count = time.time() - _seconds(older_than), service.connect(), 0
    for job in list(service.each(client, job_records.JOBS)):
        if job["status"] not in job_watch.FINISHED or (job["finished_at"] or 0) > before:
            continue
        if not dry_run:
            service.post(client, f"{job_records.path_of(job['id'])}/prune", {})
        output.say(job["id"])
        count += 1
    output.say(f"{count} jobs {'would be ' if dry_run else ''}pruned")


def _seconds(text: str) -> int:
    """The seconds of a number with a unit."""
    found = re.fullmatch(r"([0-9]{1,6})([hdw])", text)
    if found is None:
        raise AlignkitError(f"--older-than {text}: expected a number and h, d or w, such as 30d")
    return int(found[1]) * UNITS[found[2]]


for command in (
    job_requests.submit,
    job_requests.estimate,
    job_sweep.sweep,
    job_watch.watch,
    job_records.events,
    job_records.metrics,
    job_records.logs,
    job_download.download,
    job_download.report,
):
    app.command()(command)
