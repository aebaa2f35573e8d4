"""A small disk of its own, for tests that fill it; skipped where none may be mounted."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHUNK = 64 * 1024
OTHERS = "somebody-else-s"
"""The file that fills a disk."""


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size at `folder`, in memory, that is gone at the end."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Somebody else's file takes all that is left of the disk meanwhile, also what is freed again."""
    path = folder / OTHERS
    fill(path)
    try:
        yield
    finally:
        path.unlink()


def fill(path: Path) -> None:
    """Let the file at `path` take all that is left of its disk."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(CHUNK))
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while os.write(file.fileno(), bytes(256)):
            pass
