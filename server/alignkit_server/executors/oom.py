"""The memory of this process's control group: what is left of it, and how often the kernel killed for want of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
KILLED_LINE = "the system killed a process of this node because its memory was used up"
"""What the log of a run on another machine says of such a kill there."""
ENDED = "The training process ended with status"
"""What the log of a run says, before the status, of a trainer that ended without a result but was not killed."""
KILLED = "The training process was ended by SIGKILL"
"""What it says of one that was."""
_FILES = re.compile(r"^file (\d+)$", re.MULTILINE)
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def was_killed(status: int | None) -> bool:
    """Whether an exit status is SIGKILL's: as Python gives it, as a shell does, or as a program that passes on -9."""
    return status in {-9, 128 + 9, 256 - 9}


def oom_kills() -> int | None:
    """How many processes of this one's control group the kernel has killed for want of memory; None if unknown.

    The group may be a whole container, so that the count tells of an engine's end as well.
    """
    for path in _counters():
        try:
            found = _COUNT.search(path.read_text(encoding="utf-8"))
        except OSError:
            continue
        if found is not None:
            return int(found[1])
    return None


def memory_left() -> int:
    """Bytes that this machine and the control group (of version 2) can still give; caches of files count as free."""
    free = psutil.virtual_memory().available
    for counter in _counters():
        group = counter.parent
        try:
            limit = int((group / "memory.max").read_text(encoding="utf-8"))  # "max": no number, no limit
            used = int((group / "memory.current").read_text(encoding="utf-8"))
            cached = _FILES.search((group / "memory.stat").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return min(free, limit - used + (int(cached[1]) if cached else 0))
    return free


def _counters() -> Iterator[Path]:
    """Files that may hold the count: for control groups of version 2 and 1, seen from a container or its host."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield CGROUPS / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control"
    yield CGROUPS / "memory.events"
    yield CGROUPS / "memory" / "memory.oom_control"
