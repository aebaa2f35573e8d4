"""Outages of what the service stands on, each for as long as a context; `tests.server.disk.full` is another."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.server.postgres import Postgres


@contextmanager
def killed(server: Postgres) -> Iterator[None]:
    """Postgres is away meanwhile."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def locked(*files: Path) -> Iterator[None]:
    """Another process than the server's, this one, writes into the databases meanwhile."""
    with ExitStack() as held:
        for file in files:
            connection = sqlite3.connect(file, isolation_level=None, timeout=60)
            held.callback(connection.close)
            connection.execute("BEGIN IMMEDIATE")
        yield
