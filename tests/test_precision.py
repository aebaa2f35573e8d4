"""Precision chosen by measured error: on a tiny model, against errors that are put in by hand."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignkit import precision
from alignkit.precision import choose, error_of, log_ratios, perturbed
from tests.tiny import build_tiny_model

ROWS = [([1, 5, 9, 14, 7, 3], [(2, 6)]), ([1, 4, 8, 2, 6, 11, 12], [(3, 5), (6, 7)])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = build_tiny_model(tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_the_log_ratio_is_that_of_the_models_own_logits(model: Any) -> None:
    with perturbed(model, 0) as trial:
        found, _ = log_ratios(trial, ROWS, nullcontext)
        expected = []
        for ids, spans in ROWS:
            tokens = torch.tensor([ids])
            policy = trial(input_ids=tokens).logits.double().log_softmax(-1)
            with trial.disable_adapter():
                reference = trial(input_ids=tokens).logits.double().log_softmax(-1)
            ratio = (policy - reference).detach()
            places = [place for start, end in spans for place in range(start, end)]
            expected.append(sum(float(ratio[0, place - 1, ids[place]]) for place in places))
    assert found == pytest.approx(expected, abs=1e-9)
    assert any(abs(value) > 1e-6 for value in found)


def test_the_model_is_left_as_it_was(model: Any) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    choose(model, ROWS, 0.1)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert not hasattr(model, "peft_config")


def test_the_error_is_of_a_hundred_tokens() -> None:
    rows = [([0] * 26, [(1, 26)])]
    assert error_of([0.5], [0.4], rows) == pytest.approx(0.2)  # 25 tokens: the root of four times as many
    assert error_of([math.nan], [0.4], rows) == math.inf


def test_16_bits_of_a_cpu_are_measured_and_float32_has_no_error(model: Any) -> None:
    measured = choose(model, ROWS, 1e-9).measured
    assert measured["no"].error < 1e-6
    assert measured["bf16"].error > 0


def test_weights_of_16_bits_are_computed_in_float32_where_that_is_exact(model: Any) -> None:
    narrow = type(model)(model.config).to(torch.bfloat16)
    wide = type(model)(model.config)
    wide.load_state_dict({name: weight.float() for name, weight in narrow.state_dict().items()})
    with perturbed(narrow, 0) as trial:
        found, _ = log_ratios(trial, ROWS, precision.InFloat32)
        adapter = {name: weight.clone() for name, weight in trial.state_dict().items() if "lora_" in name}
    with perturbed(wide, 0) as trial:
        trial.load_state_dict(adapter, strict=False)
        expected, _ = log_ratios(trial, ROWS, nullcontext)
    assert found == pytest.approx(expected, abs=1e-5)


def _choice(
    monkeypatch: pytest.MonkeyPatch, model: Any, errors: dict[str, float], budget: float, largest: float = 1.0
) -> precision.Choice:
    """The choice among ways with these errors on a GPU that has them in this order."""
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        way: (lambda way=way: nullcontext(way)) for way in errors
    }
    monkeypatch.setattr(precision, "ways", lambda *_: contexts)

    def ratios(_model: Any, rows: Any, context: Any) -> tuple[list[float], float]:
        made = context()
        if isinstance(made, precision.InFloat32):
            made.largest = largest
            return [0.0] * len(rows), 1.0
        return [errors[made.enter_result]] * len(rows), 1.0

    monkeypatch.setattr(precision, "log_ratios", ratios)
    monkeypatch.setattr(precision, "error_of", lambda found, *_: found[0])
    return choose(model, ROWS, budget)


def test_the_fastest_way_within_the_budget_is_taken(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    errors = {"fp16": 0.08, "bf16": 0.6, "tf32": 0.03, "no": 0.0}
    assert _choice(monkeypatch, model, errors, 0.1).way == "fp16"
    assert _choice(monkeypatch, model, errors, 0.05).way == "tf32"
    assert _choice(monkeypatch, model, errors, 0.001).way == "no"


def test_float16_is_left_where_the_model_nears_its_range(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    errors = {"fp16": 0.08, "bf16": 0.6, "tf32": 0.03}
    found = _choice(monkeypatch, model, errors, 0.1, largest=30_000.0)
    assert found.way == "tf32"
    assert found.measured["fp16"].error == math.inf


def test_without_a_way_within_the_budget_the_most_exact_is_taken_and_reported(
    monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    found = _choice(monkeypatch, model, {"fp16": 0.3, "bf16": 0.6}, 0.1)
    assert (found.way, found.within) == ("fp16", False)
    assert "fp16 0.300, bf16 0.600; none is within the budget" in found.sentence(0.1)
