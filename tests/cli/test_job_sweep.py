"""`alignkit jobs sweep`: its jobs, and nothing left of a sweep that is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from alignkit.cli import job_sweep
from alignkit.cli.job_sweep import halving_of, points_of
from alignkit.cli.json_shapes import SHAPES
from alignkit.errors import AlignkitError
from alignkit_server.sweeps import schemas
from tests.cli.conftest import Run
from tests.cli.shapes import lacking
from tests.server.support import BASE_MODEL, pairs

SWEEP = ("jobs", "sweep", "pairs.jsonl", "--model", BASE_MODEL)
VARIED = ("--vary", "beta=0.05,0.1", "--vary", "divergence=reverse_kl,js_divergence")


@pytest.fixture(autouse=True)
def data(run: Run) -> None:
    Path("pairs.jsonl").write_bytes(pairs(20))


def test_a_sweep_is_ordinary_jobs_of_one_file_and_one_name(client: OpenAI, run: Run) -> None:
    done = run(*SWEEP, *VARIED, "--name", "mine", "--metadata", "team=a", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert lacking(SHAPES["jobs sweep"], found) == []
    jobs = [client.fine_tuning.jobs.retrieve(one["job"]) for one in found["jobs"]]
    given = [job.to_dict()["method"]["f_dpo"]["hyperparameters"] for job in jobs]  # type: ignore[index]
    assert [(one["beta"], one["divergence"]) for one in given] == [
        (beta, divergence) for beta in (0.05, 0.1) for divergence in ("reverse_kl", "js_divergence")
    ]
    assert {(job.metadata or {})["sweep"] for job in jobs} == {"mine"}
    assert (jobs[0].metadata or {})["name"] == "1: beta 0.05, divergence reverse_kl"
    assert (jobs[0].metadata or {})["team"] == "a"
    assert len({job.training_file for job in jobs}) == 1
    assert found["compare"].endswith(f"/#/compare?sweep={found['id']}")


def test_a_sweep_with_halving_pauses_its_jobs_at_the_first_rung(client: OpenAI, run: Run) -> None:
    given = ("--param", "batch_size=4", "--halve-by", "train_loss", "--goal", "min", "--rungs", "1,2")
    done = run(*SWEEP, "--vary", "beta=0.05,0.1", *given, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sweep: Any = client.get(f"/fine_tuning/sweeps/{found['id']}", cast_to=object)
    assert sweep["sweep"]["halving"] == {"metric": "train_loss", "goal": "min", "rungs": [1, 2], "keep": 0.5}
    assert (sweep["next_rung"], found["sweep"]) == (1, found["id"])


@pytest.mark.parametrize(
    ("metric", "rungs", "message"),
    [("x", None, "expected both"), (None, "1", "expected both"), ("x", "1,b", "--rungs 1,b: expected steps")],
)
def test_a_halving_that_is_not_whole_is_refused(metric: str | None, rungs: str | None, message: str) -> None:
    with pytest.raises(AlignkitError, match=message):
        halving_of(metric, rungs, "max", 0.5)


def test_a_sweep_that_is_refused_leaves_no_job_and_no_file(client: OpenAI, run: Run) -> None:
    done = run(*SWEEP, "--vary", "beta=0.1,-1")
    assert done.returncode == 1
    assert "beta" in done.stderr
    assert {job.status for job in client.fine_tuning.jobs.list()} <= {"cancelled"}
    assert client.files.list().data == []


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["beta"], "--vary beta: expected name=value"),
        (["beta="], "--vary.beta: expected a list of values"),
        (["beta={,1"], "--vary: expected a JSON or YAML value, found '{'"),
        (["beta=1,1"], "--vary.beta: expected each value once"),
        (["beta=1", "beta=2"], "--vary beta=2: beta is given twice"),
        ([f"a{at}=" + ",".join(map(str, range(100))) for at in range(3)], "found 1,000,000"),
        (["a=" + ",".join(map(str, range(65)))], "expected at most 64 jobs, found 65"),
    ],
)
def test_a_wrong_set_of_values_is_refused(vary: list[str], message: str) -> None:
    with pytest.raises(AlignkitError) as refused:
        points_of(vary)
    assert message in str(refused.value)


def test_the_command_allows_as_many_jobs_as_the_service() -> None:
    assert job_sweep.MOST_JOBS == schemas.MOST_JOBS
