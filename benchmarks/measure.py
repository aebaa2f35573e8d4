"""Measures one contender in a fresh process: median seconds, and peak memory over what its inputs take."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WARM_UP, RUNS = 1, 5


def in_fresh_process(module: str, contender: str, shape: dict[str, Any]) -> dict[str, float]:
    """Run `python -m module --one contender shape` and return what `report` printed."""
    command = [sys.executable, "-m", module, "--one", contender, json.dumps(shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(step: Callable[[], None], runs: int = RUNS) -> None:
    """Time `step` and print the figures as JSON; the caller made the inputs."""
    base = _reset_peak()
    seconds = []
    for number in range(WARM_UP + runs):
        started = time.perf_counter()
        step()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    figures = {"seconds": statistics.median(seconds), "peak_mb": (_peak() - base) / 2**20}
    sys.stdout.write(json.dumps(figures) + "\n")


def _reset_peak() -> int:
    """Linux: forget the process's largest size so far; returns the present one, in bytes."""
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    with open("/proc/self/status") as file:  # noqa: PTH123
        line = next(line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
