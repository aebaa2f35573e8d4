"""Files of stores: each appears whole, and one that is damaged, cut off or under another's name counts as missing.

A store's entries lie two levels deep in its folder. An entry's time is that of its last use.

A file holds the store's magic bytes, a SHA-256 digest of the entry's name and content, and the content.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path

from alignkit.disk import put

KEEP_DAYS = 90
"""Days after its last use for which an entry is kept."""

_DIGEST_BYTES = 32


def write(path: Path, magic: bytes, name: str, content: bytes) -> None:
    """Write the entry `name`. Raises OSError, with nothing left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, magic + _seal(name, content) + content)


def read(path: Path, magic: bytes, name: str) -> bytes | None:
    """The content of the entry `name`, which is used now; None if it is missing, damaged, or has another name."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    start = len(magic) + _DIGEST_BYTES
    content = stored[start:]
    if stored[:start] != magic + _seal(name, content):
        return None
    with contextlib.suppress(OSError):  # a store that may only be read keeps no note of its use
        os.utime(path)
    return content


def remove_unused(folder: Path, days: float = KEEP_DAYS) -> int:
    """Remove a store's entries that nothing used for `days`, and what a killed writer left. Returns their number."""
    before, removed = time.time() - days * 86400, 0
    for path in folder.glob("*/*"):
        try:
            if path.stat().st_mtime < before:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue
    return removed


def _seal(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()
