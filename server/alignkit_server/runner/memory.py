"""Finds out whether a training process ran out of memory, and which settings would fit.

A process that the kernel kills leaves no message. The evidence is its control group's count of such kills, and the
last lines of its log, where a failed allocation or the launcher is reported. A run on another machine is counted
there, and the count's growth is in its log too.
"""

import re
from typing import Any

import structlog

from alignkit import estimate as library
from alignkit.errors import AlignkitError
from alignkit.estimate.lengths import assumed
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.run.settled import halve
from alignkit_server.executors.oom import ENDED, KILLED_LINE, oom_kills

COUNT_FILE = "oom_kills"
"""In the job's folder: the count when its training was started."""
UNKNOWN = str(None)
"""In that file where the system does not tell the count."""
LEAST_LENGTH = 64
ADVICE = "Lower micro_batch_size or max_length, or take a smaller model."
"""Where nothing more is known."""
GIB = 2**30

_FAILED = re.compile(
    r"CUDA out of memory|HIP out of memory|can't allocate memory|Cannot allocate memory|std::bad_alloc"
    r"|torch\.\w*OutOfMemoryError|\bMemoryError\b|node running low on memory|Killed due to memory"
    rf"|{re.escape(KILLED_LINE)}",
    re.IGNORECASE,
)
_KILLED = re.compile(r"SIGKILL|[Ss]ignal 9\b|exitcode *: *-9|exit code -9")

log = structlog.get_logger()


def remember(folder: RunFolder) -> None:
    """Note how many processes of this machine were killed for want of memory, before it starts the training."""
    (folder.path / COUNT_FILE).write_text(str(oom_kills()), encoding="utf-8")


def ran_out(folder: RunFolder, *, again: bool = False) -> str | None:
    """The evidence that a dead training ran out of memory, as a phrase; None if there is none.

    The kernel's count is of all processes, so it says nothing of a trainer that ended in another way. Without a
    count, a second kill at the same place, which `again` says it is, is evidence.
    """
    tail = _tail(folder)
    found = _FAILED.search(tail)
    if found is not None:
        return f"its log says {found[0]!r}"
    before, killed, kills = _remembered(folder), _KILLED.search(tail) is not None, oom_kills()
    if before is None or (ENDED in tail and not killed):
        return None
    if before == UNKNOWN or kills is None:
        return "it was ended by SIGKILL twice at the same step" if again and killed else None
    return "the system killed it (out of memory)" if kills > int(before) else None


def _remembered(folder: RunFolder) -> str | None:
    try:
        found = (folder.path / COUNT_FILE).read_text(encoding="utf-8")
    except OSError:
        return None
    return found if found.isdecimal() or found == UNKNOWN else None


def was_killed(folder: RunFolder) -> bool:
    """Whether the log's end says that the training was killed by SIGKILL."""
    return _KILLED.search(_tail(folder)) is not None


def _tail(folder: RunFolder) -> str:
    return folder.log_tail(lines=200, limit=65536)


def halved(recipe: dict[str, Any], folder: RunFolder, start: str) -> tuple[int, int] | None:
    """Store half the micro-batch for the start after `start`. Returns (old, new); None if it cannot be smaller."""
    try:
        parsed = Recipe.parse(recipe)
    except (AlignkitError, ValueError):
        log.exception("a job's recipe cannot be read")
        return None
    return halve(parsed, folder, processes=parsed.training.devices or 1, start=start)


def what_fits(recipe: dict[str, Any]) -> str:
    """A sentence that names settings that fit this machine, or general advice if no estimate can be made."""
    try:
        found = _fitting(Recipe.parse(recipe))
    except (AlignkitError, ValueError, OSError):
        log.exception("no estimate of what would fit")
        found = None
    if found is None:
        return ADVICE
    changes, peak, usable = found
    return f"By estimate {changes} would fit: {peak / GIB:.1f} of {usable / GIB:.1f} GiB."


def _fitting(recipe: Recipe) -> tuple[str, int, int] | None:
    """(settings, bytes that they take, bytes there are) of the longest rows that fit, in as large batches as fit."""
    device, given = library.at_hand(), recipe.training.micro_batch_size
    free = recipe.training.model_copy(update={"micro_batch_size": None})
    length = recipe.data.max_length
    while length >= LEAST_LENGTH:
        data = recipe.data.model_copy(update={"max_length": length})
        tried = recipe.model_copy(update={"training": free, "data": data})
        found = library.smallest(tried, assumed(length, None), device=device, stage="single")
        if found is not None and (length, found.micro_batch_size) != (recipe.data.max_length, given):
            shorter = "" if length == recipe.data.max_length else f" with max_length {length:,}"
            changes = f"micro_batch_size {found.micro_batch_size}{shorter}"
            return changes, found.memory.peak, device.usable
        length //= 2
    return None
