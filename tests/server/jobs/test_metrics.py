"""A job's metrics as series, as a stream, and its recipe."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from alignkit.recipe import Recipe
from alignkit_server.jobs.metrics import Point, downsample
from tests.server.jobs.test_stream import finish, listen
from tests.server.support import BASE_MODEL, Running, create_job, upload


@pytest.fixture
def http(service: Running, key: str) -> Iterator[httpx.Client]:
    with service.http(key) as http:
        yield http


def report(service: Running, job_id: str, **data: Any) -> None:
    service.ledger.add_event(job_id, level="info", message="a step", type="metrics", data=data)


def metrics(http: httpx.Client, job_id: str, **query: Any) -> Any:
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_metrics_become_series(service: Running, client: OpenAI, http: httpx.Client) -> None:
    job = create_job(client)
    assert metrics(http, job.id)["series"] == {}
    for step in range(1, 6):
        report(service, job.id, step=step, total_steps=5, seconds_remaining=1, train_loss=1 / step)
    report(service, job.id, step=4, valid_loss=None)
    report(service, job.id, step=5, train_loss=9.0)
    found = metrics(http, job.id)
    assert (found["object"], found["job_id"]) == ("fine_tuning.job.metrics", job.id)
    assert found["series"] == {
        "train_loss": {"steps": [1, 2, 3, 4, 5], "values": [1, 1 / 2, 1 / 3, 1 / 4, 9.0], "total_points": 5},
        "valid_loss": {"steps": [4], "values": [None], "total_points": 1},
    }
    assert list(metrics(http, job.id, names="valid_loss,other")["series"]) == ["valid_loss"]
    few = metrics(http, job.id, names="train_loss", max_points=4)["series"]["train_loss"]
    assert (few["steps"], few["total_points"]) == ([1, 2, 4, 5], 5)


points = st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=300).map(
    lambda values: list(enumerate(values))
)


@given(points, st.integers(4, 50))
def test_downsampling_keeps_ends_and_extremes(series: list[Point], most: int) -> None:
    kept = downsample(series, most)
    assert len(kept) <= most
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    assert set(kept) <= set(series)
    if series:
        assert (kept[0], kept[-1]) == (series[0], series[-1])
    values = [value for _, value in series if value is not None]
    if values and None not in dict(series).values():
        assert {min(values), max(values)} <= {value for _, value in kept}
    if len(series) <= most:
        assert kept == series


def test_metrics_are_heard_as_they_come(service: Running, client: OpenAI, http: httpx.Client) -> None:
    job = create_job(client)
    report(service, job.id, step=1, train_loss=0.5)
    service.ledger.add_event(job.id, level="info", message="something else")
    report(service, job.id, step=2, train_loss=0.25)
    finish(service, job.id)
    path = f"/v1/fine_tuning/jobs/{job.id}/metrics"
    with http.stream("GET", path, headers={"accept": "text/event-stream"}) as answer:
        data = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [event["data"] for event in data] == [
        {"step": 1, "train_loss": 0.5},
        {"step": 2, "train_loss": 0.25},
    ]
    last = {"last-event-id": data[-1]["id"]}
    assert http.get(path, params={"stream": "true"}, headers=last).status_code == 204
    assert len(list(listen(http, job.id))) == 6


def test_the_recipe_runs_elsewhere(
    service: Running, client: OpenAI, http: httpx.Client, tmp_path: Path
) -> None:
    file_id = upload(client)
    job = create_job(client, training_file=file_id, seed=9)
    answer = http.get(f"/v1/fine_tuning/jobs/{job.id}/recipe")
    assert answer.headers["content-type"].startswith("application/yaml")
    assert str(service.settings.root) not in answer.text
    (tmp_path / "recipe.yaml").write_text(answer.text)
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert (recipe.model.path, recipe.data.train, recipe.output_dir) == (BASE_MODEL, file_id, job.id)
    stored = service.ledger.get(job.id).recipe
    assert recipe.training.model_dump() == stored["training"] | {"reference_folder": None}
    assert recipe.data.token_folder is None
    assert recipe.seed == 9


def test_another_projects_job_has_nothing_to_show(service: Running, client: OpenAI) -> None:
    job = create_job(client)
    with service.http(service.new_key("stranger")) as stranger:
        for what in ("metrics", "recipe", "metrics?stream=true"):
            assert stranger.get(f"/v1/fine_tuning/jobs/{job.id}/{what}").status_code == 404
