"""`alignkit jobs submit | estimate`, and how their options become a request."""

import re
from pathlib import Path

import pytest
from openai import OpenAI

from alignkit.cli import job_requests
from alignkit.cli.job_requests import integration_of
from alignkit.errors import AlignkitError
from tests.cli.conftest import Run
from tests.server.support import BASE_MODEL, Running, pairs, upload

SUBMIT = ("jobs", "submit", "pairs.jsonl", "--model", BASE_MODEL)


@pytest.fixture(autouse=True)
def data(run: Run) -> None:
    Path("pairs.jsonl").write_bytes(pairs(20))
    Path("held-out.jsonl").write_bytes(pairs(4))


def test_a_job_is_submitted_with_everything(client: OpenAI, run: Run) -> None:
    done = run(
        *SUBMIT, "-p", "beta=2e-1", "--suffix", "demo", "--seed", "3", "--validation-file", "held-out.jsonl",
        "--metadata", "team=a", "--metadata", "note=b=c", "--integration", "tensorboard",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = client.fine_tuning.jobs.retrieve(done.stdout.strip())
    assert (job.metadata, job.seed) == ({"team": "a", "note": "b=c"}, 3)
    assert [one.type for one in job.integrations or ()] == ["tensorboard"]
    assert job.to_dict()["method"]["f_dpo"]["hyperparameters"]["beta"] == 0.2  # type: ignore[index]
    assert job.validation_file is not None
    assert {file.filename for file in client.files.list()} == {"pairs.jsonl", "held-out.jsonl"}


def test_a_share_of_the_rows_is_held_out(client: OpenAI, run: Run) -> None:
    job_id = run(*SUBMIT, "--validation-share", "0.25").stdout.strip()
    job = client.fine_tuning.jobs.retrieve(job_id).to_dict()
    assert job["method"]["f_dpo"]["hyperparameters"]["validation_split"] == 0.25  # type: ignore[index]


def test_an_uploaded_file_is_used_again(client: OpenAI, run: Run) -> None:
    file_id = upload(client)
    done = run("jobs", "submit", file_id, "--model", BASE_MODEL)
    assert client.fine_tuning.jobs.retrieve(done.stdout.strip()).training_file == file_id
    assert len(client.files.list().data) == 1


def test_a_large_file_is_uploaded_in_parts(client: OpenAI, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_requests, "LARGE_BYTES", 100)
    monkeypatch.setattr(job_requests, "PART_BYTES", 1000)
    done = run(*SUBMIT)
    assert done.returncode == 0, done.stderr
    (file,) = client.files.list().data
    assert client.files.content(file.id).read() == pairs(20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metadata", "team"), "--metadata team: expected name=value, such as team=a"),
        (("--metadata", "=a"), "--metadata =a: expected name=value"),
        (("--metadata", f"{'k' * 65}=v"), "metadata"),
        (("--param", "beta"), "--param beta: expected name=value, such as beta=0.1"),
        (("--param", "beta={"), "--param: expected a JSON or YAML value, found '{'"),
        (("-p", "beta=9"), "(method.f_dpo.hyperparameters.beta)"),
        (("--integration", "wandb:demo"), "expected name=value, such as wandb:project=demo"),
        (("--integration", "abacus"), "integrations"),
        (("--method", "ppo"), "--method: expected one of f_dpo, "),
        (("--validation-share", "1.5"), "--validation-share 1.5: expected a share above 0 and below 1"),
        (("--validation-share", "0.5", "--validation-file", "held-out.jsonl"), "found both"),
        (("--validation-file", "none.jsonl"), "none.jsonl: expected a data file, or the id of an uploaded"),
        (("--validation-file", "file-unknown"), "No such file: 'file-unknown'"),
    ],
)
def test_a_refused_job_is_one_line_and_leaves_no_file(
    client: OpenAI, run: Run, options: tuple[str, ...], words: str
) -> None:
    done = run(*SUBMIT, *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert client.files.list().data == []


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--method", "sft"), "found 'sft'; did you mean supervised?"), (("--model", "other"), "'other'")],
)
@pytest.mark.parametrize("command", ["submit", "estimate"])
def test_an_unknown_method_or_model_is_refused_before_a_file_travels(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(job_requests, "_upload", lambda *_: pytest.fail("uploaded"))
    done = run("jobs", command, "pairs.jsonl", "--model", BASE_MODEL, *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_is_estimated_and_nothing_stays(client: OpenAI, run: Run) -> None:
    command = ("jobs", "estimate", "pairs.jsonl", "--model", BASE_MODEL)
    shown = run(*command, "-p", "n_epochs=2")
    assert shown.returncode == 0, shown.stderr
    assert "\nsteps" in shown.stdout
    found = run(*command, "--json").json
    assert (found["object"], found["rows"]) == ("fine_tuning.estimate", 20)
    assert client.files.list().data == []
    assert client.fine_tuning.jobs.list().data == []
    assert "(method.f_dpo.hyperparameters.beta)" in run(*command, "-p", "beta=9").stderr
    assert client.files.list().data == []


def test_an_estimate_shows_the_cost_where_the_service_has_a_price(
    service: Running, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.settings, "price_per_gpu_hour", 2.5)
    shown = run("jobs", "estimate", "pairs.jsonl", "--model", BASE_MODEL)
    assert re.search(r"^cost +\S+ USD, at 2\.50 USD an hour$", shown.stdout, re.MULTILINE), shown


def test_integrations_are_read_from_words() -> None:
    assert integration_of("tensorboard") == {"type": "tensorboard"}
    assert integration_of("wandb:project=demo,tags=a,tags=b,name=x=y") == {
        "type": "wandb",
        "wandb": {"project": "demo", "tags": ["a", "b"], "name": "x=y"},
    }
    with pytest.raises(AlignkitError, match="expected name=value"):
        integration_of("wandb:project")
