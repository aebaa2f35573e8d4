"""The benchmarks of whole commands run with a tiny model, and time every command once."""

import json
from pathlib import Path

import pytest

from benchmarks import reuse, warm
from tests.tiny import build_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def result_of(benchmark: object, folder: Path, patch: pytest.MonkeyPatch, *options: str) -> dict[str, dict]:
    model, out = build_tiny_model(folder / "model"), folder / "out.json"
    patch.setattr("sys.argv", ["benchmark", "--model", str(model), "--out", str(out), *options])
    benchmark.main()  # type: ignore[attr-defined]
    return json.loads(out.read_text())["seconds"]


def test_a_waiting_trainer_is_ready_sooner_than_a_cold_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result_of(warm, tmp_path, monkeypatch, "--runs", "1")
    assert 0 < found["warm"]["ready"] < found["cold"]["ready"] < found["cold"]["first step"]


def test_a_sweep_takes_less_than_as_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = result_of(reuse, tmp_path, monkeypatch, "--pairs", "16", "--scale", "0.05")
    assert set(found) == {"TRL", "first", "second", "sweep"}
    assert found["sweep"] < len(reuse.DIVERGENCES) * found["first"]
