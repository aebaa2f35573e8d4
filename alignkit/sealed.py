"""Files of stores: each appears whole, and one that is damaged, cut off or under another's name counts as missing.

A file holds the store's magic bytes, a SHA-256 digest of the entry's name and content, and the content.
"""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

_DIGEST_BYTES = 32


def write(path: Path, magic: bytes, name: str, content: bytes) -> None:
    """Write the entry `name`: temporary file, fsync, rename. Raises OSError, with nothing left behind."""
    temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(magic + _seal(name, content) + content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read(path: Path, magic: bytes, name: str) -> bytes | None:
    """The content of the entry `name`; None if it is missing, damaged, or belongs to another name."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    start = len(magic) + _DIGEST_BYTES
    content = stored[start:]
    return content if stored[:start] == magic + _seal(name, content) else None


def _seal(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()
