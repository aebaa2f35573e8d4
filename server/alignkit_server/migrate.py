"""Upgrades the database schema; servers that start at the same time take turns."""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DatabaseError

from alignkit.errors import AlignkitError
from alignkit_server.database import BUSY_SECONDS, open_engine
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
    Raises AlignkitError if the database is newer than this version, damaged, or cannot be reached.
    """
    engine = open_engine(url, foreign_keys=False)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            config = migration_config(connection)
            if connection.dialect.name == "sqlite":
                _read_roots(connection)
            _refuse_newer(connection, config)
            command.upgrade(config, "head")
    except DatabaseError as error:
        raise AlignkitError(_reason(engine, error)) from error
    finally:
        engine.dispose()


def _read_roots(connection: Connection) -> None:
    """Read the first entry of each table and index of an SQLite database, so that one with a damaged root is refused.

    SQLite's own quick_check reads all of a database, which takes half a minute for 400 MB that are not in memory.
    """
    partial = "sql LIKE '% WHERE %'"  # SQLite reads such an index for matching queries alone
    roots = f"SELECT type, name, tbl_name FROM sqlite_master WHERE rootpage > 0 AND NOT ifnull({partial}, 0)"  # noqa: S608
    for kind, name, table in connection.exec_driver_sql(roots).all():
        by = f' INDEXED BY "{name}"' if kind == "index" else ""
        what = "1" if kind == "index" else "*"
        connection.exec_driver_sql(f'SELECT {what} FROM "{table}"{by} LIMIT 1').first()  # noqa: S608


def _refuse_newer(connection: Connection, config: Config) -> None:
    """Raise AlignkitError if the schema has a revision that this version does not know."""
    found = MigrationContext.configure(connection).get_current_heads()
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    unknown = sorted(set(found) - known)
    if unknown:
        raise AlignkitError(
            f"the database was last used by a newer alignkit: its schema is {unknown[0]!r}, this version knows up to "
            f"{scripts.get_current_head()!r}. Start that version, or restore a backup made before the upgrade"
        )


def _reason(engine: Engine, error: DatabaseError) -> str:
    """A sentence about a database that cannot be opened, without its password."""
    name = engine.url.database if engine.dialect.name == "sqlite" else engine.url.render_as_string()
    if isinstance(error.orig, sqlite3.DatabaseError) and not isinstance(error.orig, sqlite3.OperationalError):
        return _damaged(name, error.orig)
    why = str(error.orig).strip().splitlines() or ["no reason given"]
    return f"the database {name} cannot be used: {why[0]}"


def check_queue(path: Path) -> None:
    """Raise AlignkitError if the SQLite database of the durable queue is damaged; one that is missing will be made.

    DBOS, which owns it, would end the start with a traceback, or let jobs fail once it reads a damaged page.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        raise AlignkitError(f"the database {path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise AlignkitError(_damaged(path, error)) from error
    if found != "ok":
        raise AlignkitError(_damaged(path, found.splitlines()[-1]))


def _damaged(name: object, why: object) -> str:
    return f"the database {name} is damaged ({why}): restore a backup, or start with another home"


@contextmanager
def start_lock(settings: Settings) -> Iterator[None]:
    """Hold the start lock of this home while a server prepares its database and first key."""
    with (settings.root / LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
