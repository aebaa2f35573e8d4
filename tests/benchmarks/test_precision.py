"""The benchmark of precisions runs with a tiny model, and finds errors in the order of the formats' digits."""

import json
from pathlib import Path

import pytest

from benchmarks import precision
from tests.tiny import build_tiny_model


def test_it_measures_each_precision_beside_trls_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = build_tiny_model(tmp_path / "model"), tmp_path / "out.json"
    arguments = ["precision", "--model", str(model), "--steps", "2", "--tokens", "24", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    precision.main()
    found = json.loads(out.read_text())["weights"]["float32"]
    errors = {way: one["error"] for way, one in found["ways"].items()}
    assert errors["no"] < errors["fp16"] < errors["bf16"]
    assert found["auto"] in found["ways"]
    assert all(one["seconds"] > 0 for way, one in found["ways"].items() if way != "fp16")
    assert found["ways"]["fp16"]["seconds"] is None  # a CPU computes it so slowly that no run takes it
