"""Disk space kept in reserve, so that deletions and the ends of jobs can still be recorded on a full disk.

The reserve is a file that is given up as soon as the disk is full, and made again once there is room. Requests that
would use much space are refused in the meantime, so that they do not use it up.
"""

import contextlib
import errno
import os
from pathlib import Path

import structlog

from alignkit_server.repeating import Repeating

MOST_BYTES = 16 * 2**20
MOST_OF_DISK = 20
"""The reserve is at most this fraction of the disk: one twentieth."""
LOOK_SECONDS = 1.0
FILE_NAME = ".reserve"

log = structlog.get_logger()


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write on the disk of `folder`."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def reserve_bytes(folder: Path) -> int:
    """Size of the reserve on the disk of `folder`."""
    state = os.statvfs(folder)
    return min(MOST_BYTES, state.f_blocks * state.f_frsize // MOST_OF_DISK)


def ample_bytes(folder: Path) -> int:
    """Free bytes with which the disk of `folder` counts as having room again, the reserve still to be made."""
    return reserve_bytes(folder) * 5 // 2


def has_room(folder: Path, size: int = 0) -> bool:
    """Whether the disk of `folder` has room for `size` bytes, and is not full with them."""
    return free_bytes(folder) >= size + ample_bytes(folder)


def require_room(folder: Path) -> None:
    """Raise OSError (ENOSPC) if the disk of `folder` is full."""
    if not has_room(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Reserve:
    """The reserve of a home, shared by its servers. Thread-safe."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = home / FILE_NAME
        self._size = reserve_bytes(home)
        self._looking = Repeating("disk-reserve", self.look, LOOK_SECONDS)

    def start(self) -> None:
        """Make the reserve, and look after it from now on."""
        self.look()
        self._looking.start()

    def stop(self) -> None:
        """Leave the reserve as it is."""
        self._looking.stop()

    def is_low(self) -> bool:
        """Whether the disk is full, apart from the reserve, which may be released already."""
        least = self._size // 2 if self._file.exists() else self._size * 3 // 2
        return free_bytes(self._home) < least

    def look(self) -> None:
        """Give the reserve up if the disk is full; make it again once there is much more room."""
        if self._file.exists():
            if self.is_low():
                self.release()
        elif has_room(self._home):
            self._make()

    def release(self) -> None:
        """Give the reserve up: the disk is full."""
        with contextlib.suppress(FileNotFoundError):
            self._file.unlink()
            log.warning("the disk is full: its reserve is in use", bytes=self._size)

    def _make(self) -> None:
        staging = self._file.with_name(f"{FILE_NAME}.{os.getpid()}")
        try:
            with staging.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
            staging.replace(self._file)
        except OSError:  # another writer was faster
            staging.unlink(missing_ok=True)
