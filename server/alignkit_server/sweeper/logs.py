"""Cuts the logs of engines and training runs while their processes write to them."""

import os
import time
from pathlib import Path

from alignkit_server.settings import Settings

OLD_SECONDS = 7 * 24 * 3600.0
"""Age in seconds at which the log of an engine that no longer runs is removed."""


def rotate_logs(settings: Settings) -> None:
    """Cut every log larger than `max_log_bytes`, and remove old logs of engines that no longer run."""
    for path in settings.jobs_dir.glob("*/train.log"):
        rotate(path, settings.max_log_bytes)
    before = time.time() - OLD_SECONDS
    for path in settings.engines_dir.glob("*.log"):
        rotate(path, settings.max_log_bytes)
        if not path.with_suffix(".json").exists() and path.stat().st_mtime < before:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.1").unlink(missing_ok=True)


def rotate(path: Path, most: int) -> None:
    """If the log is larger than `most` bytes, keep its end as `<log>.1` and empty it.

    The process appends, so it continues at the new end. Output written between the two steps is lost.
    """
    try:
        size = path.stat().st_size
        if size <= most:
            return
        with path.open("rb") as log:
            log.seek(size - most)
            path.with_name(f"{path.name}.1").write_bytes(log.read(most))
        os.truncate(path, 0)
    except FileNotFoundError:
        return
