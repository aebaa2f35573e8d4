"""Who may read the home: this user alone; of models and adapters, the group too where an engine is another user.

Homes that older versions made are mended at the start.
"""

import stat
from collections.abc import Iterator
from pathlib import Path

import structlog

from alignkit_server.settings import Settings

log = structlog.get_logger()


def private_folders(settings: Settings) -> tuple[Path, ...]:
    """The folders that hold what tenants gave, or what runs of this user's processes keep."""
    return (
        settings.files_dir,
        settings.uploads_dir,
        settings.incoming_dir,
        settings.jobs_dir,
        settings.exports_dir,
        settings.references_dir,
        settings.tokens_dir,
        settings.standbys_dir,
        settings.leases_dir,
        settings.engines_dir,
        settings.engine_caches_dir,
    )


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
    yield from ((folder, 0o700) for folder in private_folders(settings))
    for folder in (settings.root, settings.files_dir, settings.uploads_dir):
        inside = (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
        yield from ((path, 0o700) for path in inside)  # an operator's program stays one


def _narrow(path: Path, most: int) -> bool:
    """Whether the mode is within `most` now."""
    try:
        found = stat.S_IMODE(path.stat().st_mode)
        if found & ~most & 0o777:
            path.chmod(found & (most | 0o7000))
    except FileNotFoundError:
        return True
    except OSError:  # not this user's, or on a file system that is mounted read-only
        return False
    return True
