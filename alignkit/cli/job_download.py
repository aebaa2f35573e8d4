"""`alignkit jobs download | report`: what a job leaves, as files."""

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from alignkit.cli import job_records, output, saving, service
from alignkit.cli.job_records import JobId
from alignkit.cli.job_sweep import SWEEP, SWEEPS
from alignkit.cli.naming import named


def download(
    job_id: JobId,
    to: Annotated[Path | None, typer.Option(help="new folder; default: the job's id")] = None,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="with the fine-tuned model's files")
    ] = True,
) -> None:
    """Download a job's description, recipe, report, events, metrics, log and fine-tuned model into a new folder."""
    client = service.connect()
    folder = to or Path(job_id)
    saving.require_new(folder)
    job = job_records.retrieve(client, job_id)
    with saving.new_folder(folder) as part:
        _write_records(client, job, part)
        name = job["fine_tuned_model"]
        if model and name is not None:
            (part / "model").mkdir()
            saving.fetch_archive(client, f"/models/{quote(name, safe='')}/archive", part / "model")
    output.say(str(folder))


def report(
    job_id: Annotated[str, typer.Argument(help="id of the job, or of a sweep", callback=named)],
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; default: JOB_ID.html")
    ] = None,
) -> None:
    """Download a job's report, an HTML page with its curves, answers and recipe, or a sweep's, with its table."""
    path = to or Path(f"{job_id}.html")
    of_sweep = job_id.startswith(SWEEP)
    source = f"{SWEEPS}/{quote(job_id, safe='')}" if of_sweep else job_records.path_of(job_id)
    with saving.new_file(path, replace=True) as file:
        service.download(service.connect(), f"{source}/report", file)
    output.say(str(path))


def _write_records(client: Any, job: dict[str, Any], folder: Path) -> None:
    path = job_records.path_of(job["id"])
    events = list(service.each(client, f"{path}/events"))[::-1]
    texts = {
        "job.json": json.dumps(job, indent=2),
        "events.jsonl": "\n".join(map(json.dumps, events)),
        "metrics.json": json.dumps(service.get(client, f"{path}/metrics", max_points=10_000)),
        "train.log": "\n".join(service.get(client, f"{path}/logs", tail=1000)["lines"]),
    }
    for name, text in texts.items():
        if text:
            (folder / name).write_text(f"{text}\n", encoding="utf-8")
    with (folder / "recipe.yaml").open("wb") as file:
        service.download(client, f"{path}/recipe", file)
    page = folder / "report.html"
    try:
        with page.open("wb") as file:
            service.download(client, f"{path}/report", file)
    except service.NotThereError:  # before training has ended, after a prune, or with ALIGNKIT_REPORT=off
        page.unlink()
