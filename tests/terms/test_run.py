"""A run of a recipe with terms, groups and the probe, from file to result."""

import json
from pathlib import Path

import pytest
import yaml

from alignkit.evaluate_run import evaluate_run
from alignkit.train import main
from tests.tiny import build_tiny_model
from tests.tree import ROOT


def test_a_recipe_with_terms_runs_and_reports_its_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", "off")
    recipe = {
        "model": {"path": str(build_tiny_model(tmp_path / "model"))},
        "data": {
            "train": str(ROOT / "recipes" / "robust" / "train.jsonl"),
            "validation": str(ROOT / "recipes" / "robust" / "validation.jsonl"),
            "max_length": 512,
            "flip": {"share": 0.25},
        },
        "method": {"type": "f_dpo"},
        "terms": [
            {"type": "robust", "over": "groups"},
            {"type": "align_groups"},
            {"type": "thresholds", "chosen_floor": 0.1},
            {"type": "anchor", "sequences": 2},
        ],
        "lora": {"r": 4, "alpha": 8},
        "training": {"max_steps": 3, "batch_size": 7, "logging_steps": 1},
        "collapse_guard": None,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main([str(tmp_path / "recipe.yaml")]) == 0
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    for name in (
        "train_robust_ess",
        "train_groups_kitchen_weight",
        "train_thresholds_chosen_below",
        "train_terms_penalty",
        "train_probe_memorised",
        "valid_groups_travel_accuracy",
        "valid_opis",
    ):
        assert metrics[name] is not None, name
    assert evaluate_run(tmp_path / "run").after["valid_opis"] == pytest.approx(
        metrics["valid_opis"], abs=1e-6
    )
