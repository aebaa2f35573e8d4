"""`alignkit jobs events | metrics | logs | watch | download`."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIConnectionError, OpenAI

from alignkit.cli import job_watch
from tests.cli.conftest import Run
from tests.server.page.runs import MARKUP, finish, tell
from tests.server.page.runs import run as job_that_trains
from tests.server.support import Running, create_job, write_adapter

LONG = "the training process found the disk full; " * 10


def test_events_are_lines_that_no_pipe_wraps(service: Running, client: OpenAI, run: Run) -> None:
    job_id = create_job(client).id
    tell(service, job_id, f"{LONG}{MARKUP} [bold]x[/bold] \x1b[31mred", level="warn")
    lines = run("jobs", "events", job_id).stdout.splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [
        f"Created fine-tuning job: {job_id}",
        "Files validated, job queued",
        f"warn: {LONG}{MARKUP} [bold]x[/bold] \\x1b[31mred",
    ]
    assert run("jobs", "events", job_id, "--limit", "1").stdout.count("\n") == 1


def test_events_of_a_type_are_the_api_s_oldest_first(service: Running, client: OpenAI, run: Run) -> None:
    job_id = job_that_trains(service, client, steps=3)
    found = run("jobs", "events", job_id, "--type", "metrics", "--limit", "2", "--json").json
    assert [event["data"]["step"] for event in found] == [2, 3]
    page = client.fine_tuning.jobs.list_events(job_id, limit=50).data
    assert found == [event.to_dict() for event in page if event.type == "metrics"][1::-1]


def test_metrics_are_summed_up(service: Running, client: OpenAI, run: Run) -> None:
    job_id = create_job(client).id
    assert "no metrics yet" in run("jobs", "metrics", job_id).stderr
    for step, loss in ((1, 0.75), (2, 0.25), (3, None), (4, 0.5)):
        values = {"step": step, "train_loss": loss, "valid_loss": None}
        service.ledger.add_event(job_id, level="info", message="x", type="metrics", data=values)
    shown = run("jobs", "metrics", job_id).stdout
    cells = {row.split("│")[1].strip(): row.split("│")[2:-1] for row in shown.splitlines() if "_loss" in row}
    assert [cell.strip() for cell in cells["train_loss"]] == ["4", "0.75", "0.5", "0.25 at 2", "0.75 at 1"]
    assert [cell.strip() for cell in cells["valid_loss"]] == ["4", "-", "-", "-", "-"]
    found = run("jobs", "metrics", job_id, "--name", "train_loss", "--json").json
    assert list(found["series"]) == ["train_loss"]
    assert found["series"]["train_loss"]["values"] == [0.75, 0.25, None, 0.5]


def test_a_log_is_shown_from_its_end(service: Running, client: OpenAI, run: Run) -> None:
    job_id = create_job(client).id
    assert "there is no log" in run("jobs", "logs", job_id).stderr
    log = service.settings.jobs_dir / job_id / "train.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"reading {service.settings.root}/files/f\n{LONG}\n[red]last\n")
    assert run("jobs", "logs", job_id).stdout == f"reading …/f\n{LONG}\n[red]last\n"
    found = run("jobs", "logs", job_id, "--tail", "1", "--json").json
    assert (found["lines"], found["has_more"]) == (["[red]last"], True)
    assert run("jobs", "logs", job_id, "--tail", "1001").returncode == 2


def test_watching_a_finished_job_prints_its_events_unwrapped(
    service: Running, client: OpenAI, run: Run
) -> None:
    job_id = job_that_trains(service, client, steps=1)
    tell(service, job_id, LONG)
    name = finish(service, job_id)
    done = run("jobs", "watch", job_id)
    assert done.returncode == 0, done.stderr
    assert LONG in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == f"succeeded: {name}"
    other = create_job(client).id
    client.fine_tuning.jobs.cancel(other)
    assert run("jobs", "watch", other).returncode == 1


def test_watching_goes_on_over_an_outage(
    service: Running, client: OpenAI, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = job_that_trains(service, client, steps=1)
    name, asked = finish(service, job_id), []

    def failing_twice(client: OpenAI, job_id: str, seen: str | None) -> list[Any]:
        asked.append(seen)
        if len(asked) < 3:
            raise APIConnectionError(request=httpx.Request("GET", "http://gone"))
        return []

    monkeypatch.setattr(job_watch, "_new_events", failing_twice)
    monkeypatch.setattr(job_watch, "POLL_SECONDS", 0.01)
    done = run("jobs", "watch", job_id)
    assert (done.returncode, done.stdout) == (0, f"succeeded: {name}\n"), done.stderr
    assert done.stderr == "the service does not answer; waiting for it\n"
    asked.clear()
    monkeypatch.setattr(job_watch, "OUTAGE_SECONDS", -1.0)
    assert (run("jobs", "watch", job_id).returncode, len(asked)) == (1, 1)


def test_everything_a_job_leaves_is_downloaded(
    service: Running, client: OpenAI, run: Run, tmp_path: Path
) -> None:
    job_id = job_that_trains(service, client, steps=2)
    name = f"ft:tiny-llama:project::{job_id}"
    adapter = str(write_adapter(tmp_path / "adapter"))
    service.ledger.add_model(job_id, name=name, base_model="tiny-llama", kind="adapter", path=adapter)
    service.ledger.transition(job_id, "succeeded", only_from=("running",), fine_tuned_model=name)
    assert run("jobs", "download", job_id, "--no-model", "--to", "early").returncode == 0
    assert not Path("early/report.html").exists()
    report = service.settings.jobs_dir / job_id / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<p>")
    done = run("jobs", "download", job_id)
    assert (done.returncode, done.stdout) == (0, f"{job_id}\n"), done.stderr
    folder = Path(job_id)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    records = {name for name in found if not name.startswith("model/")}
    assert records == {"job.json", "recipe.yaml", "report.html", "events.jsonl", "metrics.json"}
    assert {"model/adapter_config.json", "model/adapter_model.safetensors"} <= found
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events[0]["message"] == f"Created fine-tuning job: {job_id}"
    assert (folder / "recipe.yaml").read_text().startswith("model:")
    again = run("jobs", "download", job_id)
    assert again.returncode == 1
    assert "choose another with --to" in again.stderr
    assert run("jobs", "download", job_id, "--no-model", "--to", "plain").returncode == 0
    assert not Path("plain/model").exists()
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    (tmp_path / "adapter").rmdir()
    gone = run("jobs", "download", job_id, "--to", "gone")
    assert "no longer exist" in gone.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["early", job_id, "plain"], (
        "nothing half-done stays"
    )
