"""Temporary files for what a project sends: their space counts towards its quota before it is written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignkit_server.limits.incoming import JOINED, RECEIVED, folder_of
from alignkit_server.limits.quotas import require_bytes, require_disk
from alignkit_server.services import Services


@dataclass(frozen=True, slots=True)
class Temporary:
    """A temporary file, open for writing."""

    path: Path
    descriptor: int


@dataclass(frozen=True, slots=True)
class Space:
    """The space of one project. Every method may take as long as the disk and the database do."""

    services: Services
    project_id: str

    def open(self, prefix: str = RECEIVED) -> Temporary:
        """A new file, which the caller closes, and renames or removes."""
        folder = folder_of(self.services.settings, self.project_id)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=prefix, dir=folder)
        return Temporary(Path(name), descriptor)

    def take(self, file: Temporary, size: int) -> None:
        """Let the file have at least `size` bytes. Raises 429 if the project's quota has no room for them."""
        services = self.services
        with services.database.writing() as session:
            require_bytes(session, self.project_id, services.settings, size, own=file.path)
            os.ftruncate(file.descriptor, size)  # within the lock: the next request counts it

    @contextmanager
    def copy(self, size: int) -> Iterator[Temporary]:
        """A file for a copy of `size` bytes, removed if the context fails. Raises 429 if there is no room for it."""
        services, file = self.services, self.open(JOINED)
        try:
            try:
                with services.database.writing() as session:
                    require_disk(
                        session,
                        self.project_id,
                        services.settings,
                        size,
                        what="file",
                        meanwhile="its parts are joined",
                        own=file.path,
                    )
                    os.ftruncate(file.descriptor, size)
                yield file
            finally:
                os.close(file.descriptor)
        except BaseException:
            file.path.unlink(missing_ok=True)
            raise
