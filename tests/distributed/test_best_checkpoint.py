"""The best step and early stopping with two processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkit.run.folder import RunFolder
from tests.distributed.launching import build_inputs, launch, write_recipe


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_stop_and_keep_together(tmp_path: Path) -> None:
    inputs = build_inputs(tmp_path / "inputs", rows=21)
    rows = inputs / "pairs-validation.jsonl"
    swapped = [json.loads(line) for line in rows.read_text().splitlines()]
    for row in swapped:  # what is trained makes the held-out loss worse
        good, bad = row["preferred_output"], row["non_preferred_output"]
        row["preferred_output"], row["non_preferred_output"] = bad, good
    rows.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    path = write_recipe(
        inputs,
        inputs / "two",
        "f_dpo",
        max_steps=12,
        learning_rate=2e-2,
        eval_steps=1,
        save_steps=100,
        early_stopping={"patience": 2},
    )
    finished = launch("ddp", [path])
    assert finished.returncode == 0, finished.stdout[-3000:]
    folder = RunFolder(inputs / "two")
    result: Any = folder.read_result()
    step = result["result_step"]
    assert result["stopped_early"]
    assert result["steps"] == step + 2 < 12
    published, kept = (
        load_file(path / "adapter_model.safetensors")
        for path in (folder.adapter, folder.checkpoints / f"checkpoint-{step}")
    )
    assert all(torch.equal(weight, kept[name]) for name, weight in published.items())
    assert result["metrics"]["valid_loss"] == result["best"]["value"]
