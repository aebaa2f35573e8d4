"""A trainer that waits with a loaded model trains as one that was started for its run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkit import launch, standby
from alignkit.launch import Request
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.preference import write_pairs
from tests.tiny import build_tiny_model

REQUEST = Request(["recipe.yaml", "--resume"], {"A": "1"}, "/", "/dev/null")


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The other end of a standby's standard input."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as given, os.fdopen(writing, "wb", buffering=0) as line:
        monkeypatch.setattr(sys, "stdin", given)
        yield line


def test_a_request_comes_as_it_was_sent(line: Any) -> None:
    line.write(REQUEST.to_line())
    assert standby.read_request(5) == REQUEST


def test_without_a_request_in_time_there_is_none(line: Any) -> None:
    assert standby.read_request(0.01) is None


@pytest.mark.parametrize("sent", [b"", REQUEST.to_line()[:20]])
def test_without_its_server_there_is_none(line: Any, sent: bytes) -> None:
    """Nor where the server ended in the middle of a request."""
    line.write(sent)
    line.close()
    assert standby.read_request(5) is None


@pytest.mark.slow
def test_it_takes_on_the_place_of_its_run(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    request = Request(
        ["recipe.yaml"], {"ALIGNKIT_MARK": "x", "PATH": os.environ["PATH"]}, str(tmp_path), str(log)
    )
    program = (
        "import json, os, sys; from alignkit import standby; from alignkit.launch import Request; "
        "standby.become(Request(*json.loads(sys.argv[1]))); "
        "print(os.getcwd(), sys.argv[1:], sorted(os.environ), sys.stdin.read() == '', flush=True); "
        "os.system('echo $ALIGNKIT_MARK >&2')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(request)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert log.read_text() == f"{tmp_path} ['recipe.yaml'] ['ALIGNKIT_MARK', 'PATH'] True\nx\n"


def trained(folder: Path) -> dict[str, torch.Tensor]:
    result = RunFolder(folder).read_result()
    assert result is not None, RunFolder(folder).log_tail()
    assert result["status"] == "succeeded", result
    return load_file(RunFolder(folder).adapter / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_run_from_a_standby_is_bit_for_bit_the_run_without(tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "model")
    write_pairs(tmp_path / "train.jsonl")
    for name in ("cold", "warm"):
        recipe = Recipe.parse(
            {
                "model": {"path": str(tmp_path / "model")},
                "data": {"train": str(tmp_path / "train.jsonl"), "max_length": 128},
                "method": {"type": "f_dpo"},
                "lora": {"r": 4, "dropout": 0.1},
                "training": {"max_steps": 3, "batch_size": 4, "learning_rate": 5e-3},
                "output_dir": str(tmp_path / name),
            }
        )
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).recipe.write_text(recipe.to_yaml(), encoding="utf-8")
    subprocess.run(
        launch.launch_command(RunFolder(tmp_path / "cold").recipe), check=True, capture_output=True
    )
    log = tmp_path / "warm" / "train.log"
    waiting = subprocess.Popen(
        launch.standby_command(str(tmp_path / "model"), "float32", None, seconds=300),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    assert any(standby.READY in str(line) for line in waiting.stdout)
    start = time.monotonic()
    with waiting.stdin as line:
        request = launch.training_arguments(RunFolder(tmp_path / "warm").recipe)
        line.write(Request(request, dict(os.environ), str(tmp_path / "warm"), str(log)).to_line())
    assert waiting.wait(600) == 0, log.read_text()
    cold, warm = trained(tmp_path / "cold"), trained(tmp_path / "warm")
    assert cold.keys() == warm.keys()
    assert all(torch.equal(cold[name], warm[name]) for name in cold), time.monotonic() - start
