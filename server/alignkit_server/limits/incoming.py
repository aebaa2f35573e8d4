"""Bytes on the disk that no row counts yet: uploads as they arrive, and uploads whose parts are being joined.

Each is a temporary file in its project's folder, which all servers of a home see. Before its first byte it is made as
long as what it will hold, so that its space is taken.
"""

from pathlib import Path
from typing import NamedTuple

from alignkit_server.settings import Settings

RECEIVED = ".upload-"
JOINED = ".join-"
"""Beginnings of the files' names."""


class Incoming(NamedTuple):
    """Bytes of a project's temporary files."""

    received: int
    joined: int
    """Copies of parts, which count as files themselves."""


def folder_of(settings: Settings, project_id: str) -> Path:
    """The folder of a project's temporary files; it need not exist."""
    return settings.incoming_dir / project_id


def incoming(settings: Settings, project_id: str, own: Path | None = None) -> Incoming:
    """The bytes of a project's temporary files, without the file `own`."""
    folder = folder_of(settings, project_id)
    received, joined = (
        sum(_size(path) for path in folder.glob(f"{prefix}*") if path != own) for prefix in (RECEIVED, JOINED)
    )
    return Incoming(received, joined)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
