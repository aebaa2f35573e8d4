"""What the tests' children do."""

import os
import time
from pathlib import Path

from alignkit.errors import DataError


def double(value: int) -> int:
    return 2 * value


def refuse() -> None:
    raise DataError("line 3: expected a chat")


def grow() -> int:
    return len(bytearray(2**31))


def abort() -> None:
    os.abort()


def write_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def secrets() -> list[str]:
    return sorted(os.environ)
