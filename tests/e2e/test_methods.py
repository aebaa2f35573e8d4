"""Every type of job for real: trained by the service, proven by the canary, answered by vLLM."""

from typing import Any

import pytest

from alignkit.methods import METHODS
from tests.e2e.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
OWN: dict[str, dict[str, Any]] = {
    "f_dpo": {"divergence": "jeffreys", "match_curvature": True, "sft_weight": 0.5},
    "dpo": {"beta": 0.2},
    "supervised": {},
    "d2o": {"samples_per_prompt": 2, "max_tokens": 8},
    "sinkd": {"teacher": "tiny-teacher", "max_rows": 16},
    "bd_kd": {"teacher": "tiny-teacher", "gate": "soft"},
    "simpo": {"margin": 0.5},
    "orpo": {},
    "ipo": {"beta": 0.5},
    "kto": {"undesirable_weight": 1.5},
}
"""Hyperparameters beside those of every method. A new method is missing here until it is entered."""
MEASURED = {
    "f_dpo": "valid_rewards_margins",
    "dpo": "valid_rewards_accuracies",
    "supervised": "valid_mean_token_accuracy",
    "d2o": "valid_logratios_rejected",
    "sinkd": "valid_transport_cost",
    "bd_kd": "valid_teacher_ece",
    "simpo": "valid_rewards_margins",
    "orpo": "valid_logps_chosen",
    "ipo": "valid_logratios_chosen",
    "kto": "valid_kl",
}
"""A metric of each that only its own trainer makes."""


@pytest.mark.parametrize("method", METHODS)
def test_a_job_ends_in_a_model_that_answers(service: Service, method: str) -> None:
    client = service.client
    job = service.finish(service.submit(method, max_steps=3, **OWN[method]).id)
    assert job.status == "succeeded", job.error
    assert job.trained_tokens > 0
    assert job.method.type == method
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert any(MEASURED[method] in (event.data or {}) for event in events), [event.data for event in events]
    assert any("valid_answers_repetition" in (event.data or {}) for event in events)
    question = [{"role": "user", "content": "What is 3 plus 3?"}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=question, max_tokens=4)  # type: ignore[arg-type]
    assert answer.choices[0].message.content is not None
