"""The GPU script runs end to end where there is no GPU: tiny shapes under Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
ELSEWHERE = ("accelerate", "datasets", "liger_kernel", "peft", "pydantic", "rich", "transformers", "trl")
"""Installed here, perhaps not where a GPU is."""
BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ELSEWHERE}))
runpy.run_module("benchmarks.device", run_name="__main__")
"""


def run(folder: Path, parts: str, *command: str) -> dict[str, Any]:
    """Each part's result, after a run in one process that ended without an error."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            *command,
            "--tiny",
            "--here",
            "--out",
            str(folder),
            "--parts",
            parts,
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "ALIGNKIT_KERNELS": ""},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("part-*.json")}


@pytest.mark.slow
def test_the_heads_parts_need_torch_and_triton_alone(tmp_path: Path) -> None:
    found = run(tmp_path, "0,1,2,3,4,5", "-c", BARE)
    assert [len(part["rows"]) > 0 and "error" not in part for part in found.values()] == [True] * 6
    assert all(row["right"] for row in found["part-1"]["rows"])
    skipped = {row["name"].split()[1] for row in found["part-4"]["rows"] if "skipped" in row}
    assert {"trl", "liger"} <= skipped
    assert all(row["predicted"] for row in found["part-2"]["rows"] if row["name"].startswith("states"))
    assert any(row["name"].startswith("best chunk") for row in found["part-2"]["rows"])
    contenders = [row["name"].split()[1] for row in found["part-4"]["rows"]]
    assert contenders[:2] == ["alignkit", "alignkit"]


@pytest.mark.slow
def test_each_part_is_a_process_that_takes_the_rates_of_part_0(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "benchmarks.device", "--tiny", "--out", str(tmp_path), "--parts", "3")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "ALIGNKIT_KERNELS": ""}
    subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[2])
    assert {path.name for path in tmp_path.iterdir()} == {"part-0.json", "part-3.json"}
    assert "error" not in json.loads((tmp_path / "part-3.json").read_text())


def test_parts_whose_packages_are_missing_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import device, device_step

    monkeypatch.setattr(device_step.importlib.util, "find_spec", lambda _: None)
    bench = device.Bench("cpu", tiny=True, deadline=float("inf"))
    for part in (device_step.large, device_step.small):
        assert list(part(bench)) == [{"name": "steps", "skipped": "not installed: transformers, peft"}]


def test_a_process_that_dies_or_hangs_leaves_its_rows_and_the_reason(tmp_path: Path) -> None:
    from benchmarks import device

    path = tmp_path / "part-3.json"
    died = f"import os, pathlib; pathlib.Path({str(path)!r}).write_text('{{\"rows\": [1]}}'); os._exit(7)"
    assert not device.run_process([sys.executable, "-c", died], path, 60)
    assert json.loads(path.read_text()) == {"rows": [1], "error": "the process ended with status 7"}
    assert not device.run_process([sys.executable, "-c", "import time; time.sleep(60)"], path, 0.5)
    assert json.loads(path.read_text()) == {"rows": [], "error": "the process was stopped after 0 s"}


def test_no_part_takes_more_than_its_limit_or_than_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import device

    given: list[tuple[str, float]] = []

    def run_process(command: list[str], path: Path, seconds: float) -> bool:
        given.append((path.stem, seconds - device.GRACE))
        return path.stem != "part-1"

    monkeypatch.setattr(device, "run_process", run_process)
    assert device.in_processes(tmp_path, ["0", "1", "3"], 70, tiny=True) == ["1"]
    assert [name for name, _ in given] == ["part-0", "part-1", "part-3"]
    assert given[0][1] == device.LIMITS["0"]
    assert 60 < given[1][1] < device.LIMITS["1"]
    assert device.in_processes(tmp_path, ["0", "1"], 0, tiny=True) == ["0", "1"]


def test_one_row_that_fails_is_an_error_of_ours_or_a_peer_that_is_skipped(tmp_path: Path) -> None:
    from benchmarks import device

    def broken() -> device.Row:
        raise ValueError("no room")

    bench = device.Bench("cpu", tiny=True, deadline=float("inf"))
    ours, peer = (device.guarded(bench, "x", broken, ours=ours) for ours in (True, False))
    assert ours == {"name": "x", "error": "ValueError: no room"}
    assert peer == {"name": "x", "skipped": "ValueError: no room"}
    for rows, good in (
        ([peer, {"name": "y"}], True),
        ([ours], False),
        ([{"name": "z", "right": False}], False),
    ):

        def part(_: device.Bench, rows: list[device.Row] = rows) -> Any:
            """A part."""
            yield from rows

        assert device.run_part(bench, "9", part, tmp_path) == good


def test_rates_of_another_device_are_measured_again(tmp_path: Path) -> None:
    from benchmarks import device

    row = {"name": "an old GPU", "processors": 8, "flops": 2.0, "bandwidth": 3.0}
    (tmp_path / "part-0.json").write_text(json.dumps({"rows": [row]}))
    assert device.known_rates(tmp_path) is None
    name = torch.cuda.get_device_properties(0).name if torch.cuda.is_available() else "cpu"
    (tmp_path / "part-0.json").write_text(json.dumps({"rows": [row | {"name": name}]}))
    assert device.known_rates(tmp_path) == (8, 2.0, 3.0)


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
    from benchmarks import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["device", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        device.main()
    assert "no GPU is at hand" in capsys.readouterr().err
