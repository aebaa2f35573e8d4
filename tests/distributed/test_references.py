"""The store of references under DDP: two processes share the forwards and store what one stores, bit by bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit import train
from alignkit.recipe import Recipe
from tests.labelled import write_labelled
from tests.preference import write_pairs
from tests.tiny import build_tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("method", ["f_dpo", "kto"])
def test_two_processes_store_what_one_stores(tmp_path: Path, method: str) -> None:
    build_tiny_model(tmp_path / "model")
    write = write_pairs if method == "f_dpo" else write_labelled
    data = write(tmp_path / "data.jsonl", 40)

    def recipe(name: str) -> Path:
        values: dict[str, Any] = {
            "model": {"path": str(tmp_path / "model")},
            "data": {"train": str(data), "max_length": 128},
            "method": {"type": method},
            "training": {"batch_size": 20, "reference_folder": str(tmp_path / f"{name}-store")},
            "output_dir": str(tmp_path / name),
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(Recipe.parse(values).to_yaml(), encoding="utf-8")
        return path

    def stored(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / f"{name}-store").glob("*/*")}

    def losses(name: str) -> list[float]:
        lines = (tmp_path / name / "events.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line)["data"] for line in lines]
        return [data["train_loss"] for data in found if "train_loss" in data]

    assert train.main([str(recipe("one"))]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "alignkit.train", str(recipe("two"))],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(1)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert stored("one")
    assert stored("two").keys() == stored("one").keys()
    assert losses("two") == pytest.approx(losses("one"), rel=1e-4)
    assert stored("two") == stored("one")
