"""Streams a folder as a tar archive."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 2**20
END = bytes(2 * tarfile.BLOCKSIZE)


class Archive:
    """The files of a folder as a tar archive under `root`; opened at once, so none can vanish during the transfer."""

    def __init__(self, folder: Path, root: str) -> None:
        self._stack = ExitStack()
        self._members: list[tuple[bytes, BinaryIO, int]] = []
        try:
            for path in sorted(path for path in folder.iterdir() if path.is_file()):
                file = self._stack.enter_context(path.open("rb"))
                status = os.fstat(file.fileno())
                info = tarfile.TarInfo(f"{root}/{path.name}")
                info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
                self._members.append((info.tobuf(tarfile.PAX_FORMAT), file, info.size))
        except BaseException:
            self._stack.close()
            raise

    @property
    def size(self) -> int:
        """Size of the archive in bytes."""
        return sum(len(header) + size + _padding(size) for header, _, size in self._members) + len(END)

    def chunks(self) -> Iterator[bytes]:
        """The archive in chunks; closes the files at the end."""
        with self._stack:
            for header, file, size in self._members:
                yield header
                left = size
                while left > 0:
                    chunk = file.read(min(CHUNK_BYTES, left))
                    if not chunk:
                        raise OSError(f"{file.name} became shorter during the transfer")
                    left -= len(chunk)
                    yield chunk
                yield bytes(_padding(size))
            yield END


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
