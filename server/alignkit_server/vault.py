"""The service's own secret, outside the database: what is sealed with it, and what is derived from it.

Whoever reads the database or a backup of it learns nothing that was sealed. The file is made at the first start;
without it what was sealed is lost, so it is kept with backups of the home, apart from those of the database.
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
    """Seals text, and derives a project's secrets."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)
        self._key = base64.urlsafe_b64decode(key)

    def seal(self, text: str) -> str:
        """`text` as only this service reads it."""
        return self._fernet.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """What was sealed. Raises AlignkitError where it was with another key."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise AlignkitError(
                f"a sealed secret cannot be read: the home's {FILE_NAME} is not the one that it was sealed with"
            ) from error

    def salt(self, project_id: str) -> str:
        """A secret of the project's that is the same on every server and after every start."""
        digest = hmac.new(self._key, f"cache-salt:{project_id}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def open_vault(root: Path) -> Vault:
    """The vault of the home `root`; its key is made where there is none. Raises AlignkitError where it is damaged."""
    path = root / FILE_NAME
    if not path.exists():
        _write_private(path, Fernet.generate_key())
    try:
        return Vault(path.read_bytes().strip())
    except ValueError as error:
        raise AlignkitError(
            f"the home's {FILE_NAME} is damaged: expected 32 bytes in base64; take it from a backup"
        ) from error


def _write_private(path: Path, content: bytes) -> None:
    """Write the file for this user only; of two servers that start together the first one's stays."""
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
