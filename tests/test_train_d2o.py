"""A D2O run from a recipe: drawn samples, the folder it leaves, and the same run on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit import train
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("d2o")
    build_tiny_model(path / "model")
    for name, first in (("train", 0), ("validation", 100)):
        rows = (
            {"prompt": f"What is {index}?", "chosen": "A number.", "rejected": f"Not {index}, never."}
            for index in range(first, first + 8)
        )
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    uneven = (
        {
            "prompt": f"What is {index}?",
            "rejected": f"Not {index}, never.",
            "samples": [f"It is {index}, {i}." for i in range(1 + index)],
        }
        for index in range(8)
    )
    (path / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven))
    return path


def recipe_file(workplace: Path, output: Path, data: str = "train", **method: Any) -> Path:
    values = {
        "model": {"path": str(workplace / "model")},
        "data": {
            "train": str(workplace / f"{data}.jsonl"),
            "validation": str(workplace / "validation.jsonl"),
            "max_length": 96,
        },
        "method": {
            "type": "d2o",
            "samples_per_prompt": 3,
            "max_tokens": 6,
            "sequence_batch_size": 4,
            "instruction_pool": ["Be kind.", "Be brief."],
            **method,
        },
        "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 2e-3, "eval_steps": 2},
        "seed": 5,
        "output_dir": str(output),
    }
    path = output.with_suffix(".yaml")
    path.write_text(Recipe.parse(values).to_yaml())
    return path


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def train_losses(folder: Path) -> list[float]:
    return [event["data"]["train_loss"] for event in events(folder) if "train_loss" in event["data"]]


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    output = workplace / "finished"
    assert train.main([str(recipe_file(workplace, output))]) == 0
    return output


def test_the_folder_holds_the_run_and_its_samples(finished: Path) -> None:
    folder = RunFolder(finished)
    result = folder.read_result()
    assert result is not None
    assert (result["status"], result["steps"]) == ("succeeded", 4)
    assert result["trained_tokens"] > 0
    assert result["metrics"]["valid_logratios_rejected"] < 0
    lines = [
        json.loads(line)
        for path in folder.samples.glob("samples-*")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == 16
    assert all(len(line["answers"]) == 3 for line in lines)
    assert "Drawing 3 samples for each of 8 prompts" in [event["message"] for event in events(finished)]
    canary = json.loads(folder.canary.read_text())
    assert canary["adapter_logprobs"] != pytest.approx(canary["base_logprobs"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "method"),
    [
        ("train", {"resample_every": 2, "ref_refresh_every": 2}),  # drawn, scored and refreshed together
        ("uneven", {"sequence_batch_size": 2}),  # one process has more forwards to make than the other
    ],
)
def test_two_processes_train_like_one(workplace: Path, data: str, method: dict[str, Any]) -> None:
    """One block of prompts is drawn by one process, so both runs have the same samples."""
    one, two = workplace / f"{data}-one", workplace / f"{data}-two"
    assert train.main([str(recipe_file(workplace, one, data, **method))]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "alignkit.train", str(recipe_file(workplace, two, data, **method))],
        check=False,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert train_losses(two) == pytest.approx(train_losses(one), rel=1e-3)
