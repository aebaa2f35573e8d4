"""A real sweep through the command: its runs, its halving, and the references that its runs share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alignkit.cli.json_shapes import SHAPES
from alignkit.run.folder import RunFolder
from tests.cli.shapes import lacking
from tests.preference import write_pairs
from tests.tiny import build_tiny_model


@pytest.mark.slow
def test_a_sweep_trains_its_points_and_scores_the_reference_once(tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "model")
    data = write_pairs(tmp_path / "pairs.jsonl", 8)
    recipe = tmp_path / "recipe.yaml"
    values = {
        "model": {"path": str(tmp_path / "model")},
        "data": {"train": str(data), "validation": str(data), "max_length": 128},
        "method": {"type": "f_dpo"},
        "training": {
            "batch_size": 4,
            "learning_rate": 1e-3,
            "epochs": 2,
            "reference_folder": str(tmp_path / "r"),
        },
        "output_dir": str(tmp_path / "sweep"),
        "sweep": {
            "method.beta": [0.1, 0.5],
            "halving": {"metric": "valid_rewards_margins", "rungs": [2]},
        },
    }
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", "sweep", str(recipe), "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert lacking(SHAPES["sweep"], found) == []
    assert sorted(point["status"] for point in found["points"]) == ["stopped", "succeeded"]
    assert {point["step"] for point in found["points"]} == {2, 4}
    scored = [
        "Scoring" in RunFolder(tmp_path / "sweep" / point["point"]).events.read_text(encoding="utf-8")
        for point in found["points"]
    ]
    assert scored == [True, False]
    assert [path.suffix for path in (tmp_path / "sweep" / "tokens").glob("*/*")] == [".tokens"]
    assert "Reward against KL" in Path(found["report"]).read_text(encoding="utf-8")
