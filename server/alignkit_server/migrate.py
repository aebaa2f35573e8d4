"""Upgrades the database schema; servers that start at the same time take turns."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from alignkit_server.database import open_engine
from alignkit_server.settings import Settings

LOCK_NAME = ".start.lock"
ADVISORY_LOCK = 0x616C69676E6B6974
"""Key of the Postgres advisory lock for the same purpose: the bytes of "alignkit"."""


def migration_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; with `connection`, migrations run on that connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    return config


def migrate(url: str) -> None:
    """Upgrade the database at `url` to the newest schema, in one transaction.

    Foreign keys are not enforced meanwhile, because SQLite can change a table only by rebuilding it.
    """
    engine = open_engine(url, foreign_keys=False)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            command.upgrade(migration_config(connection), "head")
    finally:
        engine.dispose()


@contextmanager
def start_lock(settings: Settings) -> Iterator[None]:
    """Hold the start lock of this home while a server prepares its database and first key."""
    with (settings.root / LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
