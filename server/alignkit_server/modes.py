"""Who may read the home: this user alone; of models and adapters, the group too where an engine is another user.

Homes that older versions made are mended at the start.
"""

import stat
from collections.abc import Iterator
from pathlib import Path

import structlog

from alignkit_server.settings import Settings

PRIVATE_FILES = ("first-key", "secret-key", "*.sqlite", "*.sqlite-wal", "*.sqlite-shm")

log = structlog.get_logger()


def mend_modes(settings: Settings) -> None:
    """Remove other users' access to the home's files. A file that belongs to another user is only logged."""
    mode = 0o750 if settings.engine.urls else 0o700
    refused = [path for path, most in _bounds(settings, mode) if not _narrow(path, most)]
    if refused:
        log.warning(
            "others may read parts of the home, which are not this user's", paths=[p.name for p in refused]
        )


def _bounds(settings: Settings, home: int) -> Iterator[tuple[Path, int]]:
    """(path, the most that its mode may be)."""
    yield settings.root, home
    for pattern in PRIVATE_FILES:
        yield from ((path, 0o600) for path in settings.root.glob(pattern))
    for folder in (settings.files_dir, settings.uploads_dir):
        yield folder, 0o700
        yield from ((path, 0o600) for path in folder.iterdir() if path.is_file())
    yield settings.incoming_dir, 0o700
    yield settings.jobs_dir, 0o700
    yield settings.exports_dir, 0o700


def _narrow(path: Path, most: int) -> bool:
    """Whether the mode is within `most` now."""
    try:
        found = stat.S_IMODE(path.stat().st_mode)
        if found & ~most & 0o777:
            path.chmod(found & (most | 0o7000))
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    return True
