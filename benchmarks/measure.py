"""Measures one contender in a fresh process: median seconds, and peak memory over what its inputs take."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

WARM_UP, RUNS = 1, 5


def in_fresh_process(
    module: str, *arguments: str, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m module arguments` and return what it printed last, or why it could not run.

    `environment` is added to this process's. A peer that is not installed or runs out of memory is a result,
    {"error": …}; any other failure is raised.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if "ModuleNotFoundError" in last or "OutOfMemoryError" in last or done.returncode == -9:
        return {"error": last[:200]}
    raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def measure(step: Callable[[], object], device: str, runs: int = RUNS) -> dict[str, float]:
    """Median seconds of `step`, and the most memory in MB that it takes over what was there before."""
    memory = OnGpu() if device == "cuda" else OnCpu()
    seconds = []
    for number in range(WARM_UP + runs):
        started = time.perf_counter()
        step()
        memory.wait()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds),
        "slowest": max(seconds),
        "peak_mb": (memory.peak() - memory.base) / 2**20,
    }


class OnCpu:
    """Linux: the process's largest size, since it was told to forget it."""

    def __init__(self) -> None:
        with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
            file.write("5")
        self.base = self._status("VmRSS")

    def wait(self) -> None:
        """Nothing runs on."""

    def peak(self) -> int:
        """Bytes."""
        return self._status("VmHWM")

    @staticmethod
    def _status(name: str) -> int:
        with open("/proc/self/status") as file:  # noqa: PTH123
            line = next(line for line in file if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024


class OnGpu:
    """PyTorch's own count of what it allocated."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.base = torch.cuda.memory_allocated()

    def wait(self) -> None:
        """Until all that was launched is done."""
        torch.cuda.synchronize()

    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated()


def rates(device: str) -> dict[str, float]:
    """What the device can do: flop/s of a large product, bytes/s of a large copy (read and written)."""
    dtype, size = (torch.bfloat16, 8192) if device == "cuda" else (torch.float32, 2048)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = measure(partial(torch.mm, a, b, out=out), device, runs=9)
    source = torch.zeros(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    copy = measure(partial(target.copy_, source), device, runs=9)
    return {
        "flops_per_second": 2 * size**3 / product["seconds"],
        "bytes_per_second": 2 * source.numel() * source.element_size() / copy["seconds"],
    }
