"""The first start makes an admin's key and leaves it where this machine's user finds it; a terminal is shown it."""

import os
import sys
import tempfile
from pathlib import Path

from alignkit_server.database import Database
from alignkit_server.keys.repository import KeyRepository
from alignkit_server.keys.scopes import ADMIN, SCOPES
from alignkit_server.keys.service import issue_key
from alignkit_server.settings import Settings

FILE_NAME = "first-key"


def ensure_first_key(database: Database, settings: Settings) -> None:
    """Make and store a key that may do everything, unless there is an admin's key that can be used.

    Whoever starts the service could read its database, so this gives nothing away; it is the way back in after the
    last such key was revoked or expired.
    """
    path = settings.root / FILE_NAME
    with database.writing() as session:
        if any(ADMIN in key.scopes for key in KeyRepository(session).usable()):
            return
        token = issue_key(session, settings.project, tuple(SCOPES), name="first key")
        _write_private(path, token)
    _show(token, settings.project, path)


def _write_private(path: Path, token: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{token}\n")
    Path(name).replace(path)


def _show(token: str, project: str, path: Path) -> None:
    """Tell of the key. Only a terminal is shown it: any other output is kept somewhere, as a log."""
    if not sys.stdout.isatty():
        print(
            f"An admin's API key, in the project {project!r}, is in {path}, which only you can read.",
            flush=True,
        )
        return
    line = "-" * 78
    print(
        f"{line}\n"
        f"An admin's API key, in the project {project!r}. It is shown only now:\n\n"
        f"    {token}\n\n"
        f"It is also in {path}, which only you can read and where\n"
        "`alignkit jobs` looks for it. Move it to a safe place for any use beyond this machine.\n"
        f"{line}",
        flush=True,
    )
