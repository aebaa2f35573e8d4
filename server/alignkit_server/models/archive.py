"""Streams files as a tar archive."""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 2**20
END = bytes(2 * tarfile.BLOCKSIZE)


class Archive:
    """Files, by name, as a tar archive under `root`; opened at once, so none can vanish during the transfer."""

    def __init__(self, files: Mapping[str, Path | bytes], root: str) -> None:
        self._stack = ExitStack()
        self._members: list[tuple[bytes, BinaryIO, int]] = []
        try:
            for name, content in sorted(files.items()):
                info = tarfile.TarInfo(f"{root}/{name}")
                file = self._opened(content, info)
                info.mode = 0o644
                self._members.append((info.tobuf(tarfile.PAX_FORMAT), file, info.size))
        except BaseException:
            self._stack.close()
            raise

    def _opened(self, content: Path | bytes, info: tarfile.TarInfo) -> BinaryIO:
        """The content as a file; its size and time are put into `info`."""
        if isinstance(content, bytes):
            info.size = len(content)
            return io.BytesIO(content)
        file = self._stack.enter_context(content.open("rb"))
        status = os.fstat(file.fileno())
        info.size, info.mtime = status.st_size, int(status.st_mtime)
        return file

    @property
    def size(self) -> int:
        """Size of the archive in bytes."""
        return sum(len(header) + size + _padding(size) for header, _, size in self._members) + len(END)

    def close(self) -> None:
        """Close the files. Idempotent; `chunks` does it at its end."""
        self._stack.close()

    def chunks(self) -> Iterator[bytes]:
        """The archive in chunks; closes the files at the end."""
        with self._stack:
            for header, file, size in self._members:
                yield header
                left = size
                while left > 0:
                    chunk = file.read(min(CHUNK_BYTES, left))
                    if not chunk:
                        raise OSError("a file became shorter during the transfer")
                    left -= len(chunk)
                    yield chunk
                yield bytes(_padding(size))
            yield END


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
