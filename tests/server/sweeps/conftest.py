"""Sweeps of f-DPO jobs, and what the runner would report of them."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit_server.ids import rung_event
from tests.server.support import BASE_MODEL, Running, upload

HALVING = {"metric": "train_rewards_margins", "goal": "max", "rungs": [1, 2], "keep": 0.5}


@pytest.fixture
def http(service: Running, key: str) -> Iterator[httpx.Client]:
    with service.http(key) as http:
        yield http


@pytest.fixture
def create(client: OpenAI, http: httpx.Client) -> Callable[..., httpx.Response]:
    """POST a sweep of f-DPO jobs of four steps on a new file; fields may be changed."""

    def post(sweep: dict[str, Any], headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
        asked = {"type": "f_dpo", "f_dpo": {"hyperparameters": {"n_epochs": 4, "batch_size": 3}}}
        body = {"model": BASE_MODEL, "training_file": upload(client), "method": asked, "sweep": sweep}
        return http.post("/v1/fine_tuning/sweeps", json=body | changes, headers=headers)

    return post


def made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def arrive(service: Running, sweep: dict[str, Any], step: int, values: dict[str, float | None]) -> None:
    """Do what the runner does when the jobs with a value pause at a rung."""
    for number, (job_id, value) in enumerate(values.items()):
        metrics = {"step": step, "train_loss": 0.5} | ({} if value is None else {HALVING["metric"]: value})
        line = 100 * step + number
        service.ledger.transition(job_id, "running", only_from=("queued",))
        service.ledger.add_event(
            job_id, level="info", message="m", type="metrics", data=metrics, source_line=line
        )
        service.ledger.add_event(job_id, level="info", message="p", once=rung_event(step))
        service.ledger.transition(job_id, "paused", only_from=("running",))
