"""Files on the disk: their digests, the wait until they are really there, and what appears whole or not at all."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def digest(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of files, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(path: Path, content: bytes) -> None:
    """Write a file whole, in place of one that is there: temporary file, fsync, rename.

    Raises OSError, with nothing left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def staged_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `target` that is renamed to it once the block has ended, and removed if the block fails.

    Raises OSError if nothing can be written there, or if there is a folder with content at `target`. With `replace`,
    that one stays until the new one is whole, and then makes way.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        open_to_readers(staging)
        if replace and target.exists():
            _exchange(staging, target)
        else:
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(staging: Path, target: Path) -> None:
    before = Path(tempfile.mkdtemp(prefix=f".{target.name}.before.", dir=target.parent))
    target.rename(before / "replaced")
    try:
        staging.rename(target)
    except OSError:
        (before / "replaced").rename(target)
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


def open_to_readers(folder: Path) -> None:
    """Let read a folder and what is in it whom the umask lets: libraries write files that only their owner reads."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            found = stat.S_IMODE(path.stat().st_mode)
            wanted = found | (0o777 if path.is_dir() else 0o666) & ~mask
            if wanted != found:  # a linked file may be another user's
                path.chmod(wanted)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PARTLY_WRITTEN = re.compile(r"[0-9]+ requested and [0-9]+ written")


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, a quota or a limit of file sizes is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error)  # safetensors wraps the OSError, and numpy's has no number
    told = ("No space left on device", *(f"(os error {code})" for code in _FULL))
    return any(words in text for words in told) or _PARTLY_WRITTEN.search(text) is not None
