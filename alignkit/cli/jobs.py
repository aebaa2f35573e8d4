"""`alignkit jobs`: fine-tuning jobs of a running service, through the official OpenAI client."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from alignkit.cli import output
from alignkit.errors import AlignkitError
from alignkit.home import service_home

app = typer.Typer(help="Fine-tuning jobs of a running service.", no_args_is_help=True)
console = Console()
POLL_SECONDS = 1.0
FINISHED = {"succeeded", "failed", "cancelled"}
UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds."""


def connect() -> Any:
    """An OpenAI client with ALIGNKIT_BASE_URL (default http://127.0.0.1:8000/v1) and ALIGNKIT_API_KEY.

    Without ALIGNKIT_API_KEY, uses the first key of a service on this machine. Raises AlignkitError if there is none.
    """
    from openai import OpenAI  # saves openai at start-up

    url = os.environ.get("ALIGNKIT_BASE_URL", "http://127.0.0.1:8000/v1")
    key = os.environ.get("ALIGNKIT_API_KEY") or _first_key()
    if not key:
        raise AlignkitError(
            "no API key: set ALIGNKIT_API_KEY; the service stored the first key in its home at its first start"
        )
    return OpenAI(base_url=url, api_key=key, max_retries=2)


def _first_key() -> str:
    path = service_home() / "first-key"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def client_error(error: Exception) -> str | None:
    """One sentence for an error of the OpenAI client; None for anything else."""
    import openai  # saves openai at start-up

    if isinstance(error, openai.APIConnectionError):
        return "the service does not answer: start it with `alignkit serve`, or set ALIGNKIT_BASE_URL"
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        where = f" ({body['param']})" if body.get("param") else ""
        return escape(f"{body.get('message') or error.message}{where}")
    return None


@app.command()
def submit(
    training_file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="base model, or a model made by a job")],
    method: Annotated[str, typer.Option(help="training method, such as f_dpo or supervised")] = "f_dpo",
    validation_file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="hyperparameter as name=value; repeatable")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="suffix of the new model's name")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    follow: Annotated[bool, typer.Option("--watch", help="follow the job until it ends")] = False,
) -> None:
    """Upload the files and create a job."""
    client = connect()
    files = [path for path in (training_file, validation_file) if path]
    hyperparameters = parameters(param or [])
    with _only_with_a_job(client) as ids:
        for path in files:
            ids.append(client.files.create(file=path, purpose="fine-tune").id)
        optional = {
            "validation_file": ids[1] if len(ids) > 1 else None,
            "suffix": suffix,
            "seed": seed,
        }
        job = client.fine_tuning.jobs.create(
            model=model,
            training_file=ids[0],
            method={"type": method, method: {"hyperparameters": hyperparameters}},
            **{name: value for name, value in optional.items() if value is not None},
        )
    console.print(job.id)
    if follow:
        watch(job.id)


@contextmanager
def _only_with_a_job(client: Any) -> Iterator[list[str]]:
    """Takes the ids of uploaded files, which are deleted if the job that they are for is refused."""
    import openai  # saves openai at start-up

    ids: list[str] = []
    try:
        yield ids
    except openai.APIStatusError:
        for file_id in ids:
            with suppress(openai.OpenAIError):
                client.files.delete(file_id)
        raise


def parameters(pairs: list[str]) -> dict[str, Any]:
    """The hyperparameters given as name=value texts."""
    values = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise AlignkitError(f"--param {pair}: expected name=value, such as beta=0.1")
        values[name] = _value(text)
    return values


def _value(text: str) -> Any:
    """A JSON or YAML value; YAML alone reads 1e-3 as text, which no numeric option accepts."""
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


@app.command("list")
def list_(limit: Annotated[int, typer.Option(min=1, max=100)] = 20) -> None:
    """List jobs, newest first."""
    table = output.table("job", "status", "model", "method", "result")
    for job in connect().fine_tuning.jobs.list(limit=limit).data:
        table.add_row(
            job.id, job.status, job.model, job.method.type if job.method else "", job.fine_tuned_model or ""
        )
    output.show(table)


@app.command()
def cancel(job_id: str) -> None:
    """Cancel a job."""
    console.print(connect().fine_tuning.jobs.cancel(job_id).status)


@app.command()
def pause(job_id: str) -> None:
    """Pause a job: it saves its state and frees its slot."""
    console.print(connect().fine_tuning.jobs.pause(job_id).status)


@app.command()
def resume(job_id: str) -> None:
    """Put a paused job back into the queue."""
    console.print(connect().fine_tuning.jobs.resume(job_id).status)


@app.command()
def report(
    job_id: str,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; default: JOB_ID.html")
    ] = None,
) -> None:
    """Download a job's report, an HTML page with its curves, answers, data, recipe and environment."""
    page = connect().get(f"/fine_tuning/jobs/{job_id}/report", cast_to=str)
    path = output or Path(f"{job_id}.html")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise AlignkitError(f"{path}: cannot be written: {error.strerror or error}") from error
    console.print(str(path), soft_wrap=True, highlight=False, markup=False)


@app.command()
def prune(
    older_than: Annotated[
        str, typer.Option(help="finished longer ago than this: 12h, 30d, 4w; 0d for all")
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list them")] = False,
) -> None:
    """Remove checkpoints, samples and logs of finished jobs from the service's disk. Models and events stay."""
    before, client, count = time.time() - _seconds(older_than), connect(), 0
    for job in client.fine_tuning.jobs.list(limit=100):
        if job.status not in FINISHED or (job.finished_at or 0) > before:
            continue
        if not dry_run:
            client.post(f"/fine_tuning/jobs/{job.id}/prune", cast_to=object)
        console.print(job.id)
        count += 1
    console.print(f"{count} jobs {'would be ' if dry_run else ''}pruned")


def _seconds(text: str) -> int:
    """The seconds of a number with a unit."""
    found = re.fullmatch(r"([0-9]{1,6})([hdw])", text)
    if found is None:
        raise AlignkitError(f"--older-than {text}: expected a number and h, d or w, such as 30d")
    return int(found[1]) * UNITS[found[2]]


@app.command()
def watch(job_id: str) -> None:
    """Follow a job until it ends; exits with 1 unless it succeeded."""
    client = connect()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(job_id, total=None)
        seen: str | None = None
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            for event in _new_events(client, job_id, seen):
                seen = event.id
                data = event.data if isinstance(event.data, dict) else {}
                if "total_steps" in data:
                    progress.update(task, completed=data.get("step", 0), total=data["total_steps"])
                console.print(
                    escape(event.message), style={"warn": "yellow", "error": "red"}.get(event.level)
                )
            if job.status in FINISHED:
                break
            time.sleep(POLL_SECONDS)
    console.print(
        f"{job.status}: {job.fine_tuned_model or (job.error.message if job.error else '')}", markup=False
    )
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
