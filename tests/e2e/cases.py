"""What a job sets to use a method or an option, and what proves that it was used; shared by the tests of these."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import yaml

from tests.e2e.service import Service


class Case(NamedTuple):
    """A job, and the proof that what it is about had a part in it."""

    proof: str
    """A metric, or the beginning of an event's message, that nothing else makes."""
    hyperparameters: dict[str, Any] = {}  # noqa: RUF012 - read alone
    """Beside those of every job."""
    method: str = "f_dpo"
    train: str = "train.jsonl"


def case_of(cases: Mapping[str, Case], name: str) -> Case:
    """The case of that name. Fails for what has not been entered."""
    if name not in cases:
        pytest.fail(
            f"{name} has no case here: enter the hyperparameters of a job, and a metric or message that only it makes"
        )
    return cases[name]


def train(service: Service, case: Case) -> Any:
    """Train the case's job for three steps. Fails unless it succeeds, with the proof, and its model answers."""
    job = service.submit(case.method, case.train, **{"max_steps": 3} | case.hyperparameters)
    done = service.finish(job.id)
    assert done.status == "succeeded", done.error
    assert done.method.type == case.method
    assert done.trained_tokens > 0
    events = service.client.fine_tuning.jobs.list_events(job.id, limit=100).data
    metrics = {name for event in events for name in event.data or {}}
    said = [event.message for event in events]
    assert case.proof in metrics or any(message.startswith(case.proof) for message in said), (metrics, said)
    assert "valid_answers_repetition" in metrics
    require_answer(service, done.fine_tuned_model)
    return done


def require_answer(service: Service, model: str) -> None:
    """Fail unless the model answers a chat."""
    question: Any = [{"role": "user", "content": "What is 3 plus 3?"}]
    answer = service.client.chat.completions.create(model=model, messages=question, max_tokens=4)
    assert answer.choices[0].message.content is not None


def recipe_of(service: Service, job_id: str) -> dict[str, Any]:
    """The recipe that the job ran."""
    text = service.client.get(f"/fine_tuning/jobs/{job_id}/recipe", cast_to=str)
    found: dict[str, Any] = yaml.safe_load(text)
    return found
