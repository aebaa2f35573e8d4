"""Outages: temporary failures of the database or the disk, for which no job is to blame."""

import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0
"""Maximum seconds between two attempts, and so the maximum delay after the end of an outage."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FAILING_DISK = FULL | {errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE}
BUSY_SQLITE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
FAILING_SQLITE = BUSY_SQLITE | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
}
FULL_POSTGRES = "53100"
FAILING_POSTGRES = ("08", "25006", "25P03", "40001", "40P01", "53", "55P03", "57P", "58")
"""Prefixes of SQLSTATE: connection, standby, deadlock, resource, lock, shutdown and system errors."""

log = structlog.get_logger()
T = TypeVar("T")


class Detached(BaseException):
    """The server abandons durable work. A BaseException, so that DBOS does not record it as an outcome."""


def is_outage(error: BaseException) -> bool:
    """Whether `error`, or an exception it was raised from, is a temporary failure of the database or the disk."""
    return any(_is_outage(cause) for cause in _causes(error))


def is_full(error: BaseException) -> bool:
    """Whether `error`, or an exception it was raised from, reports a full disk."""
    return any(_is_full(cause) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _is_outage_of_database(error)
    failing_disk = isinstance(error, OSError) and error.errno in FAILING_DISK
    return failing_disk or isinstance(error, PoolTimeoutError) or _is_full(error)


def _is_outage_of_database(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error.orig) in FAILING_SQLITE
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # the driver's error: no connection could be made, or it was lost
        return isinstance(error, OperationalError)
    return str(state).startswith(FAILING_POSTGRES)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    if isinstance(error, DBAPIError):
        full = isinstance(error.orig, sqlite3.Error) and _sqlite_code(error.orig) == sqlite3.SQLITE_FULL
        return full or getattr(error.orig, "sqlstate", None) == FULL_POSTGRES
    return type(error).__name__ == "SafetensorError" and "No space left on device" in str(error)


def _sqlite_code(error: sqlite3.Error) -> int:
    """The primary result code of an SQLite error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def described(error: BaseException) -> str:
    """The start of a sentence about an outage, without paths and addresses."""
    if is_full(error):
        return "The server's disk is full"
    if any(isinstance(cause, OSError) for cause in _causes(error)):
        return "The server's disk cannot be used"
    return "The server's database did not answer"


def outlast(
    work: Callable[[], T], stopping: threading.Event, *, tell: Callable[[str], None] = lambda _: None
) -> T:
    """The result of `work`, which is repeated while an outage makes it fail, and so must be idempotent.

    Before each repeat, `tell` is called with a description of the outage, until a call succeeds; it may fail like
    `work`. Raises Detached when `stopping` is set.
    """
    pause, wrong, began = FIRST_PAUSE_SECONDS, "", 0.0
    while True:
        try:
            if wrong:
                tell(wrong)
                tell, wrong = (lambda _: None), ""
            return work()
        except Exception as error:
            if not is_outage(error):
                raise
            wrong = described(error)
            if not began:
                began = time.monotonic()
                log.warning("waiting for an outage to end", what=wrong, error=type(error).__name__)
            if stopping.wait(pause):
                raise Detached from error
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


@contextmanager
def left_to_recovery() -> Iterator[None]:
    """Context for a workflow's code: an outage ends the thread without an outcome, so that it is recovered later.

    Without it, DBOS records a failure of its own database like any other exception if it cannot wait for its end.
    """
    try:
        yield
    except Exception as error:
        if is_outage(error):
            log.warning(
                "workflow abandoned, to be recovered", what=described(error), error=type(error).__name__
            )
            raise Detached from error
        raise
