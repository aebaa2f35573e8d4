"""`alignkit jobs list | show | cancel | pause | resume | prune`."""

import pytest
from openai import OpenAI

from alignkit.cli import service as client_side
from alignkit_server.clock import now
from tests.cli.conftest import Run
from tests.server.page.runs import finish
from tests.server.page.runs import run as job_that_trains
from tests.server.support import BASE_MODEL, Running, create_job, upload


def test_jobs_are_listed_by_status_and_label(service: Running, client: OpenAI, run: Run) -> None:
    file = upload(client)
    first = create_job(client, training_file=file, metadata={"team": "a"}).id
    second = create_job(client, training_file=file, metadata={"team": "b"}).id
    client.fine_tuning.jobs.cancel(second)
    shown = run("jobs", "list").stdout.splitlines()
    assert [line.split("│")[1].strip() for line in shown if "ftjob-" in line] == [second, first]
    assert "cancelled" in next(line for line in shown if second in line)
    assert "in the queue" in next(line for line in shown if first in line)
    for options, found in (
        ((), [second, first]),
        (("--limit", "1"), [second]),
        (("--status", "queued"), [first]),
        (("--status", "queued", "--status", "cancelled"), [second, first]),
        (("--metadata", "team=a"), [first]),
        (("--metadata", "team=a", "--status", "cancelled"), []),
    ):
        assert [job["id"] for job in run("jobs", "list", "--json", *options).json] == found, options


def test_a_list_longer_than_a_page_is_read_whole(client: OpenAI, run: Run) -> None:
    file = upload(client)
    ids = [create_job(client, training_file=file).id for _ in range(3)]
    for size in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client_side, "PAGE", size)
            assert [job["id"] for job in run("jobs", "list", "--json").json] == ids[::-1]


def test_a_job_is_shown_as_the_api_gives_it(service: Running, client: OpenAI, run: Run, key: str) -> None:
    job_id = job_that_trains(service, client, steps=1, metadata={"team": "a"})
    name = finish(service, job_id)
    shown = run("jobs", "show", job_id)
    assert shown.returncode == 0, shown.stderr
    lines = {line[:18].strip(): line[18:].strip() for line in shown.stdout.splitlines()}
    assert lines["job"] == job_id
    assert lines["status"].startswith("succeeded · took ")
    assert (lines["model"], lines["fine-tuned model"]) == (BASE_MODEL, name)
    assert (lines["trained tokens"], lines["team"]) == ("12,345", "a")
    assert lines["peak memory"] == "1.5 GiB"
    assert "  beta " in shown.stdout
    with service.http(key) as http:
        assert run("jobs", "show", job_id, "--json").json == http.get(f"/v1/fine_tuning/jobs/{job_id}").json()


def test_a_job_s_error_is_one_line_in_a_pipe(service: Running, client: OpenAI, run: Run) -> None:
    job_id, long = create_job(client).id, "no room " * 60
    error = {"code": "out_of_memory", "message": long.strip(), "param": None}
    service.ledger.transition(job_id, "failed", only_from=("queued",), error=error, finished_at=now())
    assert f"out_of_memory: {long.strip()}" in run("jobs", "show", job_id).stdout


def test_a_job_is_paused_resumed_and_cancelled(client: OpenAI, run: Run) -> None:
    job_id = create_job(client).id
    for command, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        done = run("jobs", command, job_id)
        assert (done.returncode, done.stdout) == (0, f"{status}\n"), done.stderr
    done = run("jobs", "cancel", job_id)
    assert done.returncode == 1
    assert "has already finished" in done.stderr


def test_only_finished_jobs_are_pruned(service: Running, client: OpenAI, run: Run) -> None:
    waiting, done = create_job(client).id, create_job(client).id
    service.ledger.transition(done, "succeeded", only_from=("queued",), finished_at=now() - 10)
    folder = service.settings.jobs_dir / done
    folder.mkdir(parents=True)
    assert run("jobs", "prune").stdout == "0 jobs pruned\n"
    assert (
        run("jobs", "prune", "--older-than", "0d", "--dry-run").stdout == f"{done}\n1 jobs would be pruned\n"
    )
    assert folder.exists()
    assert run("jobs", "prune", "--older-than", "0d").stdout == f"{done}\n1 jobs pruned\n"
    assert not folder.exists()
    assert waiting not in run("jobs", "list", "--json", "--status", "succeeded").stdout
    assert "expected a number and h, d or w" in run("jobs", "prune", "--older-than", "soon").stderr
