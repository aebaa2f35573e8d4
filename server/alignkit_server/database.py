"""The database: one engine, read and write transactions, and actions that run after a commit."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session, sessionmaker

BUSY_SECONDS = 30.0
"""Seconds that SQLite waits for another writer."""
PROBE_SECONDS = 2.0
"""Seconds that a probe waits for a connection and for other writers."""
PROBED_SECONDS = 1.0
"""Seconds for which a successful probe is not repeated, because anyone may call probes without a key."""
_PROBE = text("UPDATE alembic_version SET version_num = version_num")
"""A write to the one table that always has exactly one row."""
_AFTER_COMMIT = "after_commit"
Answer = TypeVar("Answer")


class Database:
    """Opens transactions. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._prober = open_engine(url, patience=PROBE_SECONDS)
        self._probed_until = 0.0
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        self._read = sessionmaker(self.engine.execution_options(alignkit_reads=True), expire_on_commit=False)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that commits at the end, or rolls back on an exception.

        It begins at the first query. On SQLite it blocks all other writers from then on: keep it short.
        """
        with self._write() as session:
            with session.begin():
                yield session
            actions = session.info.pop(_AFTER_COMMIT, [])
        for action in actions:
            action()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a read transaction: it sees one snapshot of the database and never blocks."""
        with self._read() as session:
            yield session

    async def ask(self, query: Callable[..., Answer], *arguments: Any) -> Answer:
        """Run the read-only `query` from the event loop and return its result.

        On SQLite it runs in the calling thread: readers never block, and a switch of threads would cost more than the
        query (a quarter of a chat request's CPU time). Other databases are a network away and get a thread.
        """
        if self.engine.dialect.name == "sqlite":
            return query(*arguments)
        return await to_thread.run_sync(query, *arguments)

    def probe(self) -> None:
        """Write to the database, without effect; raises SQLAlchemyError if that is not possible soon."""
        if time.monotonic() < self._probed_until:
            return
        with self._prober.begin() as connection:
            connection.execute(_PROBE)
        self._probed_until = time.monotonic() + PROBED_SECONDS

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        self._prober.dispose()


def require_writable(path: Path) -> None:
    """Take the write lock of an SQLite database and give it back. Raises sqlite3.Error if that fails at once."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=0, uri=True)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        connection.execute("ROLLBACK")


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Call `action` after the transaction of `session` commits, and only if it does."""
    session.info.setdefault(_AFTER_COMMIT, []).append(action)


def open_engine(url: str, *, foreign_keys: bool = True, patience: float | None = None) -> Engine:
    """An engine whose errors never show parameter values.

    `foreign_keys` says whether SQLite enforces foreign keys; migrations that rebuild a table switch this off.
    `patience` bounds the seconds that a statement waits for the database and for other writers.
    """
    is_sqlite = url.startswith("sqlite")
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=not is_sqlite,
        max_overflow=-1 if is_sqlite else 10,  # `ask` must never wait for a connection
        json_serializer=_to_json,
        connect_args={} if is_sqlite or patience is None else _bounds(patience),
    )
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(
            engine, foreign_keys=foreign_keys, busy=BUSY_SECONDS if patience is None else patience
        )
    return engine


def _bounds(seconds: float) -> dict[str, Any]:
    """psycopg's arguments for a connection that waits for nothing longer than that; libpq counts whole seconds."""
    milliseconds = int(1000 * seconds)
    options = f"-c lock_timeout={milliseconds} -c statement_timeout={milliseconds}"
    return {"connect_timeout": max(2, int(seconds)), "options": options}


def storable(text: str) -> str:
    """`text` without characters that databases refuse: NUL and lone surrogates."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def _to_json(value: Any) -> str:
    """JSON, unescaped where possible: SQLite compares keys as they are written."""
    return storable(json.dumps(value, ensure_ascii=False))


def _prepare_sqlite(engine: Engine, *, foreign_keys: bool, busy: float) -> None:
    """Set up the write-ahead log, a busy timeout, and BEGIN IMMEDIATE for transactions that may write.

    A transaction that reads first and writes later would fail at once if another one wrote in between, whatever the
    timeout. Writers therefore take the write lock before they read.
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # this module issues BEGIN itself
        for pragma in (
            f"busy_timeout = {int(busy * 1000)}",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get("alignkit_reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
