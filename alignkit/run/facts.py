"""Facts that a run keeps for its report, in facts.json: the machine, the data, the estimate, and what was measured.

`ALIGNKIT_REPORT=off` turns the report off, and these facts with it.
"""

import json
import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from alignkit.run.folder import REPORT_SWITCH, RunFolder, write_json
from alignkit.sharding import sharding
from alignkit.versions import WATCHED


def wanted() -> bool:
    """Whether this process is to keep facts and write a report: on rank 0, unless reports are turned off."""
    return os.environ.get(REPORT_SWITCH, "on") != "off" and os.environ.get("RANK", "0") == "0"


def keep(folder: RunFolder, **parts: Any) -> None:
    """Store JSON values by name beside those that are already there; an equal name is replaced."""
    write_json(folder.facts, read(folder) | parts)


def read(folder: RunFolder) -> dict[str, Any]:
    """The stored facts; empty without any."""
    try:
        found = json.loads(folder.facts.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def peak_bytes(folder: RunFolder) -> int | None:
    """Peak memory of the training process, as `Meter` measured it; None before training has ended."""
    measured = read(folder).get("measured")
    found = measured.get("peak_bytes") if isinstance(measured, dict) else None
    return found if isinstance(found, int) and 0 < found < 2**63 else None


def environment() -> dict[str, str]:
    """What this process runs on, by name: versions, device, cores, memory, processes. Names no host and no user."""
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return {
        **{name: found for name in ("alignkit", *WATCHED) if (found := _version(name))},
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": ", ".join(dict.fromkeys(gpus)) or "CPU",
        **({"GPUs": str(len(gpus)), "CUDA": str(torch.version.cuda or torch.version.hip)} if gpus else {}),
        "cores": str(len(os.sched_getaffinity(0))),
        "main memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "sharding": sharding() or "none",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Meter:
    """Measures a run's training: seconds in steps, and the peak of the memory that it takes above the start."""

    def __init__(self) -> None:
        self._before = psutil.Process().memory_info().rss
        self.step_seconds = 0.0
        self.steps = 0

    def step(self, seconds: float) -> None:
        """Count a step that took so many seconds."""
        self.step_seconds += seconds
        self.steps += 1

    def values(self, earlier: dict[str, Any]) -> dict[str, Any]:
        """What was measured, with that of an `earlier` start of a run that was resumed."""
        return {
            "step_seconds": round(self.step_seconds + earlier.get("step_seconds", 0.0), 3),
            "steps": self.steps + earlier.get("steps", 0),
            "peak_bytes": max(self._peak(), earlier.get("peak_bytes", 0)),
        }

    def _peak(self) -> int:
        """Bytes: of a GPU those that were allocated, else resident memory above that at the start."""
        if torch.cuda.is_available():
            return max(torch.cuda.max_memory_allocated(at) for at in range(torch.cuda.device_count()))
        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self._before)
