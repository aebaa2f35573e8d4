"""Files and folders that a command writes: whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alignkit.cli import service
from alignkit.disk import staged_folder
from alignkit.errors import AlignkitError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write in, which gets its name only at the end and is removed after an error.

    Raises AlignkitError if there is something at `path`, or no room on the disk.
    """
    require_new(path)
    with _explained(path), staged_folder(path) as part:
        yield part


@contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """As `new_folder`, for a file; with `replace`, one that is there stays until the new one is whole."""
    if not replace:
        require_new(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                yield file
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def require_new(path: Path) -> None:
    """Raise AlignkitError if there is something at `path`."""
    if os.path.lexists(path):
        raise AlignkitError(
            f"{path}: expected no file or folder of this name, found one; choose another with --to"
        )


def fetch_archive(client: Any, path: str, into: Path) -> None:
    """Unpack the files of a tar archive of the service into a folder, without the archive's own folder.

    Raises AlignkitError if the answer is refused, breaks off, or is no archive.
    """
    from alignkit.export.archive import unpack  # saves transformers at start-up

    unpack(service.chunks(client, path), into)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise AlignkitError(f"{path}: the disk is full, so nothing was kept") from error
        raise AlignkitError(f"{path}: cannot be written: {error.strerror or error}") from error
