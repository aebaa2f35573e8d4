"""Unpacks a tar archive that arrives in chunks; nothing in it can be written outside of its folder."""

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from alignkit.errors import ExportError


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with the next bytes; 0 at the end."""
        if not self._rest:
            self._rest = next(self._chunks, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def unpack(chunks: Iterator[bytes], folder: Path) -> None:
    """Write the files of an archive into `folder`, without the folder that they are in there.

    Raises ExportError if the archive is cut short or has anything but files.
    """
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Chunks(chunks)), mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or not name or name in {".", ".."}:
                    raise ExportError(f"the archive has {member.name!r}, expected files alone")
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
    except tarfile.TarError as error:
        raise ExportError(f"the archive is not whole: {error}") from error
