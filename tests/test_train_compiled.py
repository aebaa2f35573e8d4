"""Runs whose decoder layers are compiled: the losses of the same run without it, also after a resume."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from alignkit import train
from alignkit.models import layers
from alignkit.recipe import Recipe
from tests.preference import write_pairs
from tests.tiny import build_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=3, start=100)
    return path


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graphs of an earlier test."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def arguments(workplace: Path, name: str, *, compiled: bool, **changes: Any) -> list[str]:
    """The command line of a run of three steps, with two micro-batches each, an evaluation and answers."""
    training = {
        "max_steps": 3,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "save_steps": 1,
        "torch_compile": compiled,
    }
    values = {
        "model": {"path": str(workplace / "model")},
        "data": {
            "train": str(workplace / "train.jsonl"),
            "validation": str(workplace / "validation.jsonl"),
            "max_length": 128,
        },
        "method": {"type": "f_dpo", "divergence": "js_divergence", "beta": 0.5},
        "collapse_guard": {"prompts": 1, "max_new_tokens": 8},
        "seed": 5,
        "output_dir": str(workplace / name),
        **changes,
    }
    values["training"] = training | changes.get("training", {})
    path = workplace / f"{name}.yaml"
    path.write_text(Recipe.parse(values).to_yaml())
    return [str(path)]


def losses(folder: Path) -> list[float]:
    """The loss of each step, from the run's events."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["data"]["train_loss"] for event in events if "train_loss" in event.get("data", {})]


@pytest.mark.parametrize("lora", [{"r": 4, "alpha": 8.0}, None], ids=["lora", "all-weights"])
def test_a_compiled_run_has_the_losses_of_one_that_is_not(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    name = "all" if lora is None else "lora"
    if lora is None:
        monkeypatch.setattr(
            layers, "BACKEND", "aot_eager"
        )  # its graphs are the same, and need no C++ compiler
    options = {"lora": lora, "training": {"reference_store": "off"}}
    assert train.main(arguments(workplace, f"{name}-plain", compiled=False, **options)) == 0
    assert not counters["stats"]
    assert train.main(arguments(workplace, name, compiled=True, **options)) == 0
    expected, found = losses(workplace / f"{name}-plain"), losses(workplace / name)
    assert len(expected) == 3
    assert found == pytest.approx(expected, abs=1e-5)
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 12  # of both layers, with and without gradient, adapter and mask


def test_a_compiled_run_resumes_with_the_losses_of_one_that_went_through(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "BACKEND", "aot_eager")
    whole = arguments(workplace, "whole", compiled=True, training={"gradient_checkpointing": True})
    paused = arguments(
        workplace, "paused", compiled=True, training={"gradient_checkpointing": True, "pause_at": 1}
    )
    assert train.main(whole) == 0
    assert train.main(paused) == 0
    assert train.main([*paused, "--resume", "training.pause_at=null"]) == 0
    assert losses(workplace / "paused") == pytest.approx(losses(workplace / "whole"), abs=1e-6)
