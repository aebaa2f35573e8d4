"""The service's secret key, stored outside the database; it seals secrets and derives others.

Someone who reads the database or its backup cannot read sealed secrets. The key file is made at the first start.
Sealed secrets are lost without it: back it up with the home, but apart from the database.
"""

import base64
import hashlib
import hmac
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from alignkit.errors import AlignkitError

FILE_NAME = "secret-key"


class Vault:
    """Encrypts text and derives secrets of projects."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)
        self._key = base64.urlsafe_b64decode(key)

    def seal(self, text: str) -> str:
        """`text` encrypted with this service's key."""
        return self._fernet.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """The text that was sealed. Raises AlignkitError if it was sealed with another key."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise AlignkitError(
                f"a sealed secret cannot be read: the home's {FILE_NAME} is not the key it was sealed with"
            ) from error

    def salt(self, project_id: str) -> str:
        """A secret of the project that stays the same across servers and restarts."""
        digest = hmac.new(self._key, f"cache-salt:{project_id}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def open_vault(root: Path) -> Vault:
    """The vault of the home `root`; creates its key if missing. Raises AlignkitError if the key is damaged."""
    path = root / FILE_NAME
    if not path.exists():
        _write_private(path, Fernet.generate_key())
    try:
        return Vault(path.read_bytes().strip())
    except ValueError as error:
        raise AlignkitError(
            f"the home's {FILE_NAME} is damaged: expected 32 bytes in base64; restore it from a backup"
        ) from error


def _write_private(path: Path, content: bytes) -> None:
    """Write the file readable by this user only; if two servers start at once, the first file wins."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
