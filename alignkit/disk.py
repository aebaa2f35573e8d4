"""Files on the disk: their digests, and the wait until they are really there."""

import errno
import hashlib
import os
import re
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


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PARTLY_WRITTEN = re.compile(r"[0-9]+ requested and [0-9]+ written")


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, a quota or a limit of file sizes is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error)  # safetensors wraps the OSError, and numpy's has no number
    told = ("No space left on device", *(f"(os error {code})" for code in _FULL))
    return any(words in text for words in told) or _PARTLY_WRITTEN.search(text) is not None
