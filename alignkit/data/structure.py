"""A cheap check that a file can hold rows at all, for uploads: which rows a method takes is checked with a job."""

import gzip
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from alignkit.data.nodes import describe
from alignkit.data.reading import DEFAULT_MAX_LINE_BYTES, FORMATS, Line, iter_lines, open_file
from alignkit.data.tables import PARQUET, known_columns, possible_columns
from alignkit.errors import DataError, QuotingError, TooMuchDataError

FIRST_ROWS = 100
"""Rows among which one must be readable: a job may leave out the others."""
UNPACKED_BYTES = 64 * 2**20
"""Decompressed bytes of a gzip file that are looked at for damage."""
_CHUNK = 2**20


def require_rows(path: Path, *, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES) -> None:
    """Raise DataError unless the file is in a format with rows and one of its first rows is an object.

    A gzip file must not be damaged or cut off within UNPACKED_BYTES, and a Parquet file needs its end. The work is
    bounded: FIRST_ROWS rows, about `max_line_bytes` of text, and UNPACKED_BYTES.
    """
    with path.open("rb") as file:
        begin = file.read(len(PARQUET))
        if begin == PARQUET:
            _require_end(path)
            return
    try:
        _require_row(path, max_line_bytes)
    except TooMuchDataError:
        return  # a job's own limits decide
    if begin[:2] == b"\x1f\x8b":
        _require_sound(path)


def _require_row(path: Path, max_line_bytes: int) -> None:
    columns = _columns(path)
    fewest = 2 if columns and known_columns().isdisjoint(columns) else 0
    limits = {"max_line_bytes": max_line_bytes, "max_bytes": max_line_bytes + _CHUNK}
    first: Line | None = None
    count = 0
    try:
        for line in islice(iter_lines(path, columns=columns, **limits), FIRST_ROWS):
            if line.error is None and isinstance(line.value, dict) and len(line.value) >= fewest:
                return
            first, count = first or line, count + 1
    except DataError:
        if first is None:
            raise
    raise _no_row(first, count)


def _no_row(first: Line | None, count: int) -> DataError:
    if first is None:
        return DataError(f"the file is empty: expected {FORMATS}")
    expected, found = "one JSON object in a row", describe(first.value)
    if first.error is not None:
        expected, found = first.error.expected, first.error.found
    elif isinstance(first.value, dict):
        expected, found = "a row with cells in several columns", f"{len(first.value)}"
    among = "its only row" if count == 1 else f"the first {count} rows"
    why = f"{among} cannot be read; {first.unit} {first.number}: expected {expected}"
    must = f"The file must be {FORMATS}"
    return QuotingError(f"{why}, found {found}. {must}", f"{why}. {must}")


def _columns(path: Path) -> Mapping[str, str]:
    """The columns of a CSV file that no method knows by name: a job may rename them. Empty for any other file."""
    with ExitStack() as stack:
        try:
            line = open_file(path, stack).readline(_CHUNK)
        except (OSError, EOFError, zlib.error):  # reading the rows says it
            return {}
    return {name: name for name in possible_columns(line.decode("utf-8", "replace").strip("\ufeff\r\n"))}


def _require_end(path: Path) -> None:
    """Raise DataError unless the Parquet file ends with the length of its footer and the magic bytes."""
    size, end = path.stat().st_size, len(PARQUET) + 4
    with path.open("rb") as file:
        file.seek(max(0, size - end))
        last = file.read()
    footer = int.from_bytes(last[:4], "little")
    if not last.endswith(PARQUET) or not 0 < footer <= size - end - len(PARQUET):
        raise DataError("the file cannot be read: it is a Parquet file that is damaged or cut off")


def _require_sound(path: Path) -> None:
    left = UNPACKED_BYTES
    try:
        with gzip.open(path) as file:
            while left > 0 and (piece := file.read(_CHUNK)):
                left -= len(piece)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError("the file cannot be read: its gzip data is damaged or cut off") from error
