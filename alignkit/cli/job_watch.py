"""`alignkit jobs watch`: follow a job."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from alignkit.cli import output, service

POLL_SECONDS = 1.0
FINISHED = {"succeeded", "failed", "cancelled"}


def watch(job_id: Annotated[str, typer.Argument(help="id of the job")]) -> None:
    """Follow a job until it ends; exits with 1 unless it succeeded."""
    client, console = service.connect(), Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(job_id, total=None)
        seen: str | None = None
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            for event in _new_events(client, job_id, seen):
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


def _new_events(client: Any, job_id: str, seen: str | None) -> list[Any]:
    """Events after `seen`, oldest first (the list endpoint returns the newest first)."""
    events = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=100):
        if event.id == seen:
            break
        events.append(event)
    return events[::-1]
