"""`alignkit jobs watch`: follow a job."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from alignkit.cli import output, service
from alignkit.cli.job_records import JobId

POLL_SECONDS = 1.0
FINISHED = {"succeeded", "failed", "cancelled"}
OUTAGE_SECONDS = 600.0
"""Time for which a service that has stopped answering is waited for: a restart resumes its jobs."""
Answer = TypeVar("Answer")


def watch(job_id: JobId) -> None:
    """Follow a job until it ends, also over a restart of the service; exits with 1 unless it succeeded."""
    client, console = service.connect(), Console()
    client.fine_tuning.jobs.retrieve(job_id)  # a service that was never there is no outage
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(job_id, total=None)
        seen: str | None = None

        def news() -> tuple[Any, list[Any]]:
            return client.fine_tuning.jobs.retrieve(job_id), _new_events(client, job_id, seen)

        while True:
            job, events = _patient(news)
            for event in events:
                seen = event.id
                data = event.data if isinstance(event.data, dict) else {}
                if "total_steps" in data:
                    progress.update(task, completed=data.get("step", 0), total=data["total_steps"])
                output.say(event.message, style=output.LEVELS.get(event.level), console=console)
            if job.status in FINISHED:
                break
            time.sleep(POLL_SECONDS)
    output.say(f"{job.status}: {job.fine_tuned_model or (job.error.message if job.error else '')}")
    if job.status != "succeeded":
        raise typer.Exit(1)


def _patient(ask: Callable[[], Answer]) -> Answer:
    """The answer to `ask`, which is repeated for OUTAGE_SECONDS while the service does not answer."""
    import openai  # saves openai at start-up

    until, noted = time.monotonic() + OUTAGE_SECONDS, False
    while True:
        try:
            return ask()
        except (openai.APIConnectionError, openai.InternalServerError):
            if time.monotonic() > until:
                raise
            if not noted:
                output.note("the service does not answer; waiting for it", style="yellow")
            noted = True
            time.sleep(POLL_SECONDS)


def _new_events(client: Any, job_id: str, seen: str | None) -> list[Any]:
    """Events after `seen`, oldest first (the list endpoint returns the newest first)."""
    events = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=100):
        if event.id == seen:
            break
        events.append(event)
    return events[::-1]
