"""The estimate of memory against real runs: a small one and the benchmark's six."""

from pathlib import Path

import pytest

from benchmarks.memory_estimate import MODELS, POLICY, RUNS, STUDENT, TOLERANCE, Run, compare
from tests.estimate.small import build_small_model


@pytest.mark.slow
def test_a_small_run_takes_what_was_estimated(tmp_path: Path) -> None:
    build_small_model(tmp_path / "small")
    run = Run({"type": "f_dpo"}, "pairs", 30, "small", training={"batch_size": 4})
    found = compare(run, tmp_path)
    assert found["measured_mb"] > 150, "too little to say anything"
    assert abs(found["ratio"] - 1) <= TOLERANCE, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RUNS)
def test_the_six_take_what_was_estimated(name: str) -> None:
    for model in (POLICY, STUDENT):
        if not (MODELS / model / "config.json").is_file():
            pytest.skip(f"{MODELS / model} is not there: alignkit models import, models prune")
    found = compare(RUNS[name], MODELS.resolve())
    assert abs(found["ratio"] - 1) <= TOLERANCE, found
