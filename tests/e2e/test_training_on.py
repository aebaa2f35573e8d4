"""Supervised first, preferences after, as scripts for OpenAI do: each job trains on from the last one's result."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.completion import write_completions
from tests.e2e.service import Service
from tests.e2e.test_main_job import ask

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


def create(service: Service, model: str, file: Path, method: dict[str, Any]) -> Any:
    """A job of a script that knows nothing but OpenAI's API."""
    client = service.client
    uploaded = client.files.create(file=file.open("rb"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=model, training_file=uploaded.id, method=method, suffix="chain", seed=3
    )
    done = service.finish(job.id)
    assert done.status == "succeeded", done.error
    return done


def canary_of(service: Service, job_id: str) -> dict[str, Any]:
    events = service.client.fine_tuning.jobs.list_events(job_id, limit=100).data
    (report,) = [event.data["canary"] for event in events if event.data and "canary" in event.data]
    return report


def test_supervised_then_dpo_on_its_checkpoint(service: Service, tmp_path: Path) -> None:
    taught = tmp_path / "completions.jsonl"
    write_completions(taught, 24)
    options = {"batch_size": 4, "learning_rate_multiplier": 50, "max_steps": 4, "checkpoint_interval": 2}
    first = create(
        service, "tiny", taught, {"type": "supervised", "supervised": {"hyperparameters": options}}
    )
    (checkpoint,) = [
        found.fine_tuned_model_checkpoint
        for found in service.client.fine_tuning.jobs.checkpoints.list(first.id)
        if found.step_number == 2
    ]
    second = create(
        service,
        checkpoint,
        service.home / "train.jsonl",
        {
            "type": "dpo",
            "dpo": {
                "hyperparameters": {
                    "beta": 0.1,
                    "batch_size": 4,
                    "max_steps": 3,
                    "learning_rate_multiplier": 50,
                }
            },
        },
    )
    assert second.model == checkpoint
    assert canary_of(service, second.id)["conclusive"]
    lines = (service.home / "jobs" / second.id / "events.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [data for line in lines if "train_logratios_chosen" in (data := json.loads(line)["data"])]
    assert steps[0]["train_logratios_chosen"] == pytest.approx(0, abs=1e-4), "it begins as its reference"
    assert ask(service, "tiny") != ask(service, second.fine_tuned_model)


@pytest.mark.timeout(900)
def test_a_fully_trained_model_goes_on_with_all_weights(service: Service, tmp_path: Path) -> None:
    taught = tmp_path / "completions.jsonl"
    write_completions(taught, 24)
    options = {"batch_size": 4, "max_steps": 3, "learning_rate_multiplier": 1000}
    whole = {"hyperparameters": options | {"trained_weights": "all"}}
    first = create(service, "tiny", taught, {"type": "supervised", "supervised": whole})
    pairs = service.home / "train.jsonl"
    second = create(
        service, first.fine_tuned_model, pairs, {"type": "dpo", "dpo": {"hyperparameters": options}}
    )
    assert service.client.models.retrieve(second.fine_tuned_model).to_dict()["kind"] == "full"
    assert canary_of(service, second.id)["conclusive"]
    answers = {ask(service, model) for model in ("tiny", first.fine_tuned_model, second.fine_tuned_model)}
    assert len(answers) == 3
