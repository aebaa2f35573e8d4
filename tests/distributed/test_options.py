"""Two processes under DDP and ZeRO-2 train with an option what one does: terms, ranks, gradients, after steps."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import terms
from tests.distributed.lab import check_evaluation, check_training
from tests.distributed.launching import STEPS, Run, build_inputs, launch, write_recipe
from tests.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GROUPS = {name: str(ROOT / "recipes" / "robust" / f"{name}.jsonl") for name in ("train", "validation")}


def of_terms(*wanted: dict[str, Any], **data: Any) -> dict[str, Any]:
    """Parts of a recipe on rows with groups."""
    return {"terms": list(wanted), "data": {**GROUPS, "max_length": 512, **data}}


TERMS: dict[str, dict[str, Any]] = {
    "robust": of_terms({"type": "robust", "over": "groups", "strength": 0.2}),
    "robust-rows": of_terms({"type": "robust", "over": "rows"}),
    "align_groups": of_terms({"type": "align_groups"}),
    "early_learning": of_terms({"type": "early_learning", "weight": 1.0}, flip={"share": 0.2}),
    "thresholds": of_terms({"type": "thresholds", "chosen_floor": 0.1}),
    "anchor": of_terms({"type": "anchor", "sequences": 4, "weight": 10.0}),
    "repel": of_terms({"type": "repel", "adapters": ["ADAPTER"], "weight": 10.0}),
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
    "truncate_rank": {"lora": {"r": 4, "nested": {}}, "after": [{"type": "truncate_rank", "rank": 2}]},
}
CASES = TERMS | OTHERS
REFUSED = {"zero2": {"orthogonal", "tune"}}
"""By configuration, what a run refuses before it starts."""


class Runs:
    """The runs of every option under a configuration, launched together."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs = folder, build_inputs(folder)
        self.output = ""

    def run(self, config: str, name: str) -> Run:
        """One run; the first that asks makes all of the configuration."""
        folder = self.folder / config
        if not folder.exists():
            folder.mkdir()
            wanted = [one for one in CASES if one not in REFUSED.get(config, ())]
            recipes = [self.recipe(folder / one, CASES[one]) for one in wanted]
            self.output = launch(
                config, recipes, processes=1 if config == "single" else 2, timeout=1500
            ).stdout
        found = Run(folder / name)
        assert (found.folder / "result.json").exists(), self.output[-4000:]
        return found

    def recipe(self, output: Path, parts: dict[str, Any]) -> Path:
        """A short f-DPO recipe with the parts of an option."""
        path = write_recipe(self.inputs, output, "f_dpo")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, own in parts.items():
            values[section] = {**(values.get(section) or {}), **own} if isinstance(own, dict) else own
        text = yaml.safe_dump(values).replace("ADAPTER", str(self.inputs / "adapter"))
        path.write_text(text, encoding="utf-8")
        return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("options"))


def test_every_term_has_a_case() -> None:
    assert {name.partition("-")[0] for name in TERMS} == set(terms.available())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("config", ["ddp", "zero2"])
def test_two_processes_do_what_one_does(runs: Runs, config: str, name: str) -> None:
    if name in REFUSED.get(config, ()):
        pytest.skip(f"{name} is refused under {config}")
    one, two = runs.run("single", name), runs.run(config, name)
    check_training(one, two, config, STEPS, each=False)  # terms cancel, so one matrix may differ by more
    check_evaluation(one, two, config, STEPS, times=2 + ("after" in CASES[name]))
