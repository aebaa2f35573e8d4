"""Every option of a job for real: trained by the service, proven by the canary, answered by vLLM."""

import json
from typing import Any

import pytest

from alignkit import terms
from alignkit.methods.sinkd import SOLVERS
from tests.completion import write_completions
from tests.e2e.cases import Case, case_of, recipe_of, require_answer, train
from tests.e2e.service import Service
from tests.options import sections, steps
from tests.preference import row

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

TERMS = {
    "robust": Case("train_robust_ess", {"over": "groups", "divergence": "chi2"}, train="grouped.jsonl"),
    "align_groups": Case("train_groups_hessian_gap", train="grouped.jsonl"),
    "early_learning": Case("train_early_learning_doubted"),
    "thresholds": Case("train_thresholds_chosen_below", {"rejected_weight": 0.5}),
    "anchor": Case("train_terms_penalty", {"sequences": 4}),
    "repel": Case("train_terms_penalty", {"form": "reciprocal"}),
}
"""Term -> its case. The hyperparameters are the term's options, without those that name a file or a model."""
STEPS = {
    "interpolate": Case(
        "Interpolated with the start: 0.5 of the trained weights", {"amount": 0.5, "publish": [0.25, 1]}
    ),
    "truncate_rank": Case("Cut the adapter from rank 16 to 4", {"rank": 4}),
}
"""Step after training -> its case, with the step's options."""
SOLVED = {
    "sinkhorn": Case("train_transport_gap", {"gradient": "implicit"}),
    "newton_sparse": Case("train_transport_nonzeros", {"gradient": "implicit"}),
    "k_sparse": Case("train_transport_nonzeros", {"k": 2}),
}
OPTIONS = {
    "lora_nested": Case("train_nested_ranks", {"spread": 4}),
    "flip": Case("train_probe_memorised", {"share": 0.5, "seed": 3}),
    "tune": Case("Tuned beta from 0.1 to", {"options": ["beta"], "warmup_steps": 1}),
    "elastic": Case("Held-out loss plain", {"formats": ["nf4", "int8", "fp8"]}),
    "early_stopping": Case("Training stops early at step 2", {"patience": 1, "min_gain": 100.0}),
}
"""Hyperparameter that is a section of options -> its case, with these options."""
BESIDE = {"early_stopping": {"eval_interval": 1, "max_steps": 4}}
"""Hyperparameter -> what a job of it needs too."""


@pytest.fixture(scope="module")
def named(service: Service) -> dict[str, dict[str, Any]]:
    """Term -> its options that name a file or a model; and the files of the cases in the service's home."""
    rows = [row(index) | {"group": "even" if index % 2 == 0 else "odd"} for index in range(24)]
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (service.home / "grouped.jsonl").write_text(text, encoding="utf-8")
    write_completions(service.home / "completions.jsonl", 8)
    unwanted = train(service, Case("valid_mean_token_accuracy", {}, "supervised", "completions.jsonl"))
    return {
        "anchor": {"data": service.upload("completions.jsonl")},
        "repel": {"models": [unwanted.fine_tuned_model]},
    }


@pytest.mark.parametrize("term", terms.available())
def test_a_term(service: Service, named: dict[str, dict[str, Any]], term: str) -> None:
    case = case_of(TERMS, term)
    given = {"type": term} | case.hyperparameters | named.get(term, {})
    grouped = {"balance_groups": True} if case.train == "grouped.jsonl" else {}
    job = train(service, case._replace(hyperparameters={"terms": [given], **grouped}))
    (used,) = recipe_of(service, job.id)["terms"]
    assert case.hyperparameters.items() <= used.items()
    if term == "anchor":
        assert used["data"] == given["data"]


@pytest.mark.parametrize("option", sections())
def test_an_option_with_options_of_its_own(service: Service, option: str) -> None:
    case = case_of(OPTIONS, option)
    hyperparameters = {option: case.hyperparameters, **BESIDE.get(option, {})}
    job = train(service, case._replace(hyperparameters=hyperparameters))
    used = job.method.to_dict()["f_dpo"]["hyperparameters"][option]
    assert case.hyperparameters.items() <= used.items()


def test_gradients_that_are_orthogonal_to_their_weights(service: Service) -> None:
    train(service, Case("train_orthogonal_removed", {"gradient_direction": "orthogonal"}))


@pytest.mark.parametrize("step", steps())
def test_a_step_after_training(service: Service, step: str) -> None:
    case = case_of(STEPS, step)
    after = {"type": step} | case.hyperparameters
    job = train(service, case._replace(hyperparameters={"after": [after]}))
    for amount in after.get("publish", []):
        require_answer(service, f"{job.fine_tuned_model}:amount-{amount:g}")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_of_the_transport(service: Service, solver: str) -> None:
    case = case_of(SOLVED, solver)
    given = {"solver": solver, "pairing_weight": 0.5} | case.hyperparameters
    usual = {"teacher": "tiny-teacher", "max_rows": 16}
    job = train(service, case._replace(method="sinkd", hyperparameters=usual | given))
    assert given.items() <= recipe_of(service, job.id)["method"].items()
    metrics = service.client.get(f"/fine_tuning/jobs/{job.id}/metrics", cast_to=dict)
    assert "train_transport_gap" in json.dumps(metrics), "the pairing term"
