"""Outages: failures of the database or the disk that the service stands on. They pass, and are no job's fault."""

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
"""Between two tries: whatever waits for an outage to end goes on so soon after its end."""

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
"""Beginnings of SQLSTATE: connections, a standby, deadlocks, resources, locks, shutdowns and the system's errors."""

log = structlog.get_logger()
T = TypeVar("T")


class Detached(BaseException):
    """The server lets go of durable work: not an outcome, so DBOS must not record one (it records Exceptions)."""


def is_outage(error: BaseException) -> bool:
    """Whether `error`, or what it was raised from, is a failure of the database or the disk, which may pass."""
    return any(_is_outage(cause) for cause in _causes(error))


def is_full(error: BaseException) -> bool:
    """Whether `error`, or what it was raised from, says that a disk is full."""
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
    if state is None:  # the driver's own: no connection could be made, or it was lost
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
    """The primary result code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def described(error: BaseException) -> str:
    """A sentence's beginning about an outage, without paths and addresses."""
    if is_full(error):
        return "The server's disk is full"
    if any(isinstance(cause, OSError) for cause in _causes(error)):
        return "The server's disk cannot be used"
    return "The server's database did not answer"


def outlast(
    work: Callable[[], T], stopping: threading.Event, *, tell: Callable[[str], None] = lambda _: None
) -> T:
    """The result of `work`, repeated as long as an outage fails it; `work` must be such that repeats do no harm.

    `tell` is called with what is wrong, before each repeat, until it has succeeded once. It may fail as `work` may.
    Raises Detached once `stopping` is set.
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
    """Around a workflow's own code: an outage ends its thread without an outcome, and the workflow is taken up again.

    DBOS records a failure of its own database like any other exception, where it cannot wait for it.
    """
    try:
        yield
    except Exception as error:
        if is_outage(error):
            log.warning("a workflow is left to recovery", what=described(error), error=type(error).__name__)
            raise Detached from error
        raise
