"""Outages of the database and the disk are recognised and waited for."""

import errno
import sqlite3
import threading
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, ProgrammingError

from alignkit_server import outages
from alignkit_server.engines.errors import AdapterError
from alignkit_server.outages import Detached, described, is_full, is_outage, left_to_recovery, outlast


def of_postgres(state: type[psycopg.Error]) -> DBAPIError:
    """The exception that SQLAlchemy raises for an error reported by the server."""
    error = state("…")
    kind = OperationalError if isinstance(error, psycopg.OperationalError) else InternalError
    return kind("SELECT 1", {}, error)


@pytest.mark.parametrize(
    "error",
    [
        of_postgres(psycopg.errors.AdminShutdown),
        of_postgres(psycopg.errors.CannotConnectNow),
        of_postgres(psycopg.errors.DiskFull),
        of_postgres(psycopg.errors.ReadOnlySqlTransaction),
        OperationalError("SELECT 1", {}, psycopg.OperationalError("server closed the connection")),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=lambda error: str(getattr(error, "orig", error)),
)
def test_what_passes_is_an_outage(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        of_postgres(psycopg.errors.QueryCanceled),
        ProgrammingError("SELECT x", {}, psycopg.errors.UndefinedColumn("…")),
        FileNotFoundError(errno.ENOENT, "No such file"),
        ValueError("No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_defect_is_none(error: Exception) -> None:
    assert not is_outage(error)


def test_a_locked_sqlite_is_an_outage_and_a_missing_table_is_none(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.sqlite'}", connect_args={"timeout": 0})
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
    other = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OperationalError) as locked, engine.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
    other.close()
    with pytest.raises(OperationalError) as missing, engine.begin() as connection:
        connection.execute(text("INSERT INTO u VALUES (1)"))
    engine.dispose()
    assert is_outage(locked.value)
    assert not is_full(locked.value)
    assert not is_outage(missing.value)


def test_an_error_that_an_outage_caused_is_one() -> None:
    error = AdapterError("cannot be published")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device: /srv/secret")
    assert is_outage(error)
    assert is_full(error)
    assert described(error) == "The server's disk is full"


def test_work_is_repeated_until_the_outage_is_over_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0.0)
    full = OSError(errno.ENOSPC, "No space left on device")
    failures: list[Exception] = [full] * 3
    told: list[str] = []

    def tell(what: str) -> None:
        if len(failures) > 1:
            raise failures.pop()
        told.append(what)

    def work() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert outlast(work, threading.Event(), tell=tell) == "done"
    assert told == ["The server's disk is full"]


def test_a_defect_is_not_repeated() -> None:
    with pytest.raises(ZeroDivisionError):
        outlast(lambda: 1 / 0, threading.Event())


def test_a_stopping_server_waits_for_no_outage() -> None:
    stopping = threading.Event()
    stopping.set()

    def work() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(Detached):
        outlast(work, stopping)


def test_a_workflow_leaves_an_outage_to_recovery_and_keeps_its_own_errors() -> None:
    with pytest.raises(Detached), left_to_recovery():
        raise of_postgres(psycopg.errors.AdminShutdown)
    with pytest.raises(ZeroDivisionError), left_to_recovery():
        raise ZeroDivisionError
