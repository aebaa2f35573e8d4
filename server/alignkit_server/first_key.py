"""Creates an admin key at the first start, in a file only this user can read, and shows it on a terminal."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from alignkit_server.audit.record import add_entry
from alignkit_server.database import Database
from alignkit_server.keys.repository import KeyRepository
from alignkit_server.keys.scopes import ADMIN, SCOPES
from alignkit_server.keys.service import store_key
from alignkit_server.settings import Settings

FILE_NAME = "first-key"


def ensure_first_key(database: Database, settings: Settings) -> None:
    """Create and store a key with all scopes, unless a usable admin key exists.

    Whoever starts the service can read its database anyway, so this reveals nothing. It is the way back in after the
    last admin key was revoked or expired.
    """
    path = settings.root / FILE_NAME
    with database.writing() as session:
        repository, name = KeyRepository(session), settings.project
        if any(ADMIN in key.scopes for key in repository.usable()):
            return
        is_new = repository.project(name) is None
        key, token = store_key(session, name, tuple(SCOPES), "first key")
        if is_new:
            data: dict[str, Any] = {"name": name, "title": name}
            add_entry(session, None, (key.project_id, name), "project.created", key.project_id, data=data)
        data = {"scopes": list(key.scopes)}
        add_entry(session, None, (key.project_id, name), "api_key.created", key.id, data=data)
        _write_private(path, token)
    _show(token, settings.project, path)


def _write_private(path: Path, token: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{token}\n")
    Path(name).replace(path)


def _show(token: str, project: str, path: Path) -> None:
    """Announce the key. Only a terminal shows the key itself: other output may be kept in a log."""
    if not sys.stdout.isatty():
        print(
            f"An admin API key for the project {project!r} is in {path}, which only you can read.",
            flush=True,
        )
        return
    line = "-" * 78
    print(
        f"{line}\n"
        f"An admin API key for the project {project!r}. It is shown only once:\n\n"
        f"    {token}\n\n"
        f"It is also stored in {path}, which only you can read and where\n"
        "`alignkit jobs` looks for it. Move it to a safe place for any use beyond this machine.\n"
        f"{line}",
        flush=True,
    )
