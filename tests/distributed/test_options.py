"""Two processes under DDP and ZeRO-2 train with an option what one does: terms, ranks, gradients, after steps."""

from pathlib import Path
from typing import Any

import pytest

from alignkit import terms
from tests.distributed.lab import Case, Lab, check_evaluation, check_training
from tests.distributed.launching import STEPS
from tests.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GROUPS = {name: str(ROOT / "recipes" / "robust" / f"{name}.jsonl") for name in ("train", "validation")}


def of_terms(*wanted: dict[str, Any], **data: Any) -> dict[str, Any]:
    """Parts of a recipe on rows with groups."""
    return {"terms": list(wanted), "data": {**GROUPS, "max_length": 512, **data}}


TERMS = {
    "robust": of_terms({"type": "robust", "over": "groups", "strength": 0.2}),
    "robust-rows": of_terms({"type": "robust", "over": "rows"}),
    "align_groups": of_terms({"type": "align_groups"}),
    "early_learning": of_terms({"type": "early_learning", "weight": 1.0}, flip={"share": 0.2}),
    "thresholds": of_terms({"type": "thresholds", "chosen_floor": 0.1}),
    "anchor": of_terms({"type": "anchor", "sequences": 4, "weight": 10.0}),
    "repel": of_terms({"type": "repel", "weight": 10.0}),  # from the adapter of `the_cases`
}
OTHERS: dict[str, dict[str, Any]] = {
    "nested": {"lora": {"r": 4, "nested": {}}},
    "orthogonal": {"training": {"gradient": "orthogonal"}},
    "interpolate": {"after": [{"type": "interpolate", "amount": 0.5}]},
    # a stored reference has no noise, and whether it is stored depends on the configuration
    "elastic": {
        "elastic": {"formats": ["fp8"], "strength": 2.0},
        "training": {"reference_store": "off"},
    },
    "tune": {"tune": ["beta"]},
    "torch_compile": {"training": {"torch_compile": True}},
    "truncate_rank": {"lora": {"r": 4, "nested": {}}, "after": [{"type": "truncate_rank", "rank": 2}]},
}
REFUSED = {"zero2": {"orthogonal", "tune"}}
"""By configuration, what a run refuses before it starts."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("options"))


def the_cases(adapter: Path) -> dict[str, Case]:
    """Every option's case by name; `repel` goes away from `adapter`."""
    away = of_terms({**TERMS["repel"]["terms"][0], "adapters": [str(adapter)]})
    return {
        name: Case("f_dpo", "lora", name=name, parts=parts)
        for name, parts in (TERMS | OTHERS | {"repel": away}).items()
    }


def test_every_term_has_a_case() -> None:
    assert {name.partition("-")[0] for name in TERMS} == set(terms.available())


@pytest.mark.parametrize("name", TERMS | OTHERS)
@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_two_processes_do_what_one_does(lab: Lab, config: str, name: str) -> None:
    refused = REFUSED.get(config, set())
    if name in refused:
        pytest.skip(f"{name} is refused under {config}")
    cases = the_cases(lab.inputs[False] / "adapter")
    able = [case for case in cases.values() if case.name not in refused]
    one, two = (lab.run("single", [*cases.values()], cases[name]), lab.run(config, able, cases[name]))
    check_training(one, two, config, STEPS, each=False)  # terms cancel, so one matrix may differ by more
    check_evaluation(one, two, config, STEPS, times=2 + ("after" in OTHERS.get(name, {})))
