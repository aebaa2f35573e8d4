"""The GPU script runs end to end where there is no GPU: tiny shapes under Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
ELSEWHERE = ("accelerate", "datasets", "liger_kernel", "peft", "pydantic", "rich", "transformers", "trl")
"""Installed here, perhaps not where a GPU is."""
BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ELSEWHERE}))
runpy.run_module("benchmarks.device", run_name="__main__")
"""


def run(folder: Path, parts: str, *command: str) -> dict[str, Any]:
    """Each part's result, after a run that ended without an error."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command, "--tiny", "--out", str(folder), "--parts", parts],
        env={**os.environ, "TRITON_INTERPRET": "1", "ALIGNKIT_KERNELS": ""},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("part-*.json")}


def test_the_heads_parts_need_torch_and_triton_alone(tmp_path: Path) -> None:
    found = run(tmp_path, "0,1,2,3,4,5", "-c", BARE)
    assert [len(part["rows"]) > 0 and "error" not in part for part in found.values()] == [True] * 6
    assert all(row["right"] for row in found["part-1"]["rows"])
    skipped = {row["name"].split()[1] for row in found["part-4"]["rows"] if "skipped" in row}
    assert {"trl", "liger"} <= skipped
    assert all(row["predicted"] for row in found["part-2"]["rows"] if row["name"].startswith("states"))


@pytest.mark.slow
def test_the_step_s_parts_run(tmp_path: Path) -> None:
    found = run(tmp_path, "6,7", "-m", "benchmarks.device")
    assert {"part-0", "part-6", "part-7"} == found.keys()
    assert any("microseconds" in row for row in found["part-6"]["rows"])


def test_a_part_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import device

    def broken(_: device.Bench) -> Any:
        """A part."""
        yield {"name": "first", "seconds": 1.0}
        raise RuntimeError("no such kernel")

    bench = device.Bench("cpu", tiny=True, deadline=float("inf"))
    assert not device.run_part(bench, "9", broken, tmp_path)
    written = json.loads((tmp_path / "part-9.json").read_text())
    assert written["error"] == "RuntimeError: no such kernel"
    assert written["rows"] == [{"name": "first", "seconds": 1.0}]


def test_a_miss_of_over_15_percent_is_marked() -> None:
    from benchmarks.device import line

    row = {"name": "x", "seconds": 1.2, "predicted": 1.0, "missed": True}
    assert "x 1.20  MISSED" in line(row)
    assert "MISSED" not in line(row | {"missed": False})


def test_on_a_cpu_it_says_that_it_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from benchmarks import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["device", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        device.main()
    assert "no GPU is at hand" in capsys.readouterr().err
