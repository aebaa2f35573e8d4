"""Every type of job for real: trained by the service, proven by the canary, answered by vLLM."""

from typing import Any, NamedTuple

import pytest

from alignkit.methods import METHODS
from tests.e2e.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


class Case(NamedTuple):
    """A method's hyperparameters for a job, and a metric that proves its trainer ran."""

    metric: str
    """A metric that only its own trainer makes."""
    hyperparameters: dict[str, Any] = {}  # noqa: RUF012 - read alone
    """Beside those of every method."""


CASES = {
    "f_dpo": Case(
        "valid_rewards_margins", {"divergence": "jeffreys", "match_curvature": True, "sft_weight": 0.5}
    ),
    "dpo": Case("valid_rewards_accuracies", {"beta": 0.2}),
    "supervised": Case("valid_mean_token_accuracy"),
    "d2o": Case("valid_logratios_rejected", {"samples_per_prompt": 2, "max_tokens": 8}),
    "sinkd": Case("valid_transport_cost", {"teacher": "tiny-teacher", "max_rows": 16}),
    "bd_kd": Case("valid_teacher_ece", {"teacher": "tiny-teacher", "gate": "soft"}),
    "f_kd": Case("valid_divergence", {"teacher": "tiny-teacher", "divergence": "cauchy_schwarz"}),
    "ps_kd": Case("train_past_kl", {"final_weight": 0.5, "refresh_steps": 1}),
    "simpo": Case("valid_rewards_margins", {"margin": 0.5}),
    "orpo": Case("valid_logps_chosen"),
    "mapo": Case("valid_rewards_margins", {"beta": 0.5, "gain": 5}),
    "ipo": Case("valid_logratios_chosen", {"beta": 0.5}),
    "kto": Case("valid_kl", {"undesirable_weight": 1.5}),
}


def case_of(method: str) -> Case:
    """Fails for a method that has not been entered."""
    if method not in CASES:
        pytest.fail(
            f"{method} has no case here: enter a metric of its trainer and a job's hyperparameters in CASES"
        )
    return CASES[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_job_ends_in_a_model_that_answers(service: Service, method: str) -> None:
    client, case = service.client, case_of(method)
    job = service.finish(service.submit(method, max_steps=3, **case.hyperparameters).id)
    assert job.status == "succeeded", job.error
    assert job.trained_tokens > 0
    assert job.method.type == method
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert any(case.metric in (event.data or {}) for event in events), [event.data for event in events]
    assert any("valid_answers_repetition" in (event.data or {}) for event in events)
    question = [{"role": "user", "content": "What is 3 plus 3?"}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=question, max_tokens=4)  # type: ignore[arg-type]
    assert answer.choices[0].message.content is not None
