"""Every type of job for real: trained by the service, proven by the canary, answered by vLLM."""

import pytest

from alignkit.methods import METHODS
from tests.e2e.cases import Case, case_of, train
from tests.e2e.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

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


@pytest.mark.parametrize("method", METHODS)
def test_a_job_ends_in_a_model_that_answers(service: Service, method: str) -> None:
    train(service, case_of(CASES, method)._replace(method=method))
