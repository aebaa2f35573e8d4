"""The database: one engine, two kinds of transaction, and what happens once one is committed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from anyio import to_thread
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session, sessionmaker

BUSY_SECONDS = 30.0
"""How long SQLite waits for another writer."""
_AFTER_COMMIT = "after_commit"
Answer = TypeVar("Answer")


class Database:
    """Hands out transactions. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        self._read = sessionmaker(self.engine.execution_options(alignkit_reads=True), expire_on_commit=False)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits at the end, or rolls back on an exception.

        It begins at the first query. On SQLite it is the only writer from then on: keep it short.
        """
        with self._write() as session:
            with session.begin():
                yield session
            actions = session.info.pop(_AFTER_COMMIT, [])
        for action in actions:
            action()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state of the database and waits for nobody."""
        with self._read() as session:
            yield session

    async def ask(self, query: Callable[..., Answer], *arguments: Any) -> Answer:
        """What `query`, which only reads, finds; called from the event loop.

        SQLite's readers wait for nobody, and crossing a thread costs more than they do: a quarter of a chat request's
        processor time. Another database is a network away.
        """
        if self.engine.dialect.name == "sqlite":
            return query(*arguments)
        return await to_thread.run_sync(query, *arguments)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Call `action` once the transaction of `session` is committed, and only then."""
    session.info.setdefault(_AFTER_COMMIT, []).append(action)


def open_engine(url: str, *, foreign_keys: bool = True) -> Engine:
    """An engine whose errors never show a value.

    `foreign_keys` says whether SQLite enforces them: not while a migration rebuilds a table.
    """
    is_sqlite = url.startswith("sqlite")
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=not is_sqlite,
        max_overflow=-1 if is_sqlite else 10,  # `ask` must never wait for a connection
        json_serializer=_to_json,
    )
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, foreign_keys=foreign_keys)
    return engine


def storable(text: str) -> str:
    """`text` without what a database refuses: NUL, and halves of surrogate pairs."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def _to_json(value: Any) -> str:
    """JSON without escapes where it can be: SQLite finds a key only as it is written."""
    return storable(json.dumps(value, ensure_ascii=False))


def _prepare_sqlite(engine: Engine, *, foreign_keys: bool) -> None:
    """Write-ahead log, waiting instead of failing, and BEGIN IMMEDIATE for whoever may write.

    A transaction that reads first and writes later would fail at once where another one wrote in between, however
    long the timeout, so writers take their turn before they read.
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # BEGIN is ours
        for pragma in (
            f"busy_timeout = {int(BUSY_SECONDS * 1000)}",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get("alignkit_reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
