"""Rows of JSON arrays, CSV and Parquet files, read without holding a whole file in memory."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from alignkit.data.decoding import decode_text, scan_value
from alignkit.data.nodes import RowError, printable
from alignkit.data.rows import ROW_KINDS
from alignkit.errors import DataError, QuotingError, TooMuchDataError

PARQUET = b"PAR1"
"""First bytes of a Parquet file."""
_BATCH_ROWS = 64
_CHUNK = 2**16
_NOT_BLANK = re.compile(r"\S")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
"""A name that makes a line a header although no row has it."""
_COLUMN = re.compile(r"[\w .:/-]{1,64}")
_LETTER = re.compile(r"[^\W\d]")


def parquet_rows(path: Path, *, max_bytes: int, max_rows: int) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises DataError if it is damaged or too large.

    Arrow gives every object the keys of all others; keys without a value are removed again.
    """
    from pyarrow import ArrowException  # saves pyarrow at start-up
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            if file.metadata.num_rows > max_rows:
                raise TooMuchDataError(
                    f"the file holds too many rows: expected at most {max_rows:,}, found {file.metadata.num_rows:,}"
                )
            left = max_bytes
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                left -= batch.nbytes
                if left < 0:
                    raise TooMuchDataError(
                        f"the file holds too much text: expected at most {max_bytes:,} bytes"
                    )
                yield from map(_parquet_row, batch.to_pylist())
    except (ArrowException, OSError) as error:
        raise DataError(f"the file cannot be read: it is a damaged Parquet file ({error})") from error


def _parquet_row(row: dict[str, Any]) -> Any:
    """A row as JSON, or the RowError of a value that JSON cannot hold."""
    try:
        return _without_nulls(row, "")
    except RowError as error:
        return error


def _without_nulls(value: Any, pointer: str) -> Any:
    """A value as JSON, without keys whose value is null. Raises RowError for bytes that are not UTF-8 text."""
    if isinstance(value, dict):
        return {
            str(key): _without_nulls(inner, f"{pointer}/{key}")
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list | tuple):
        return [_without_nulls(inner, f"{pointer}/{at}") for at, inner in enumerate(value)]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            found = f"{len(value):,} other bytes in {printable(pointer)}"
            raise RowError("", "text, or bytes of UTF-8 text", found) from None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def array_values(file: BinaryIO, *, max_value_bytes: int, max_bytes: int) -> Iterator[Any]:
    """The values of one JSON array, read incrementally.

    Raises RowError with the place of the error if a value is not valid JSON; that ends the file.
    """
    text = _Text(file, max_bytes)
    text.skip()  # the bracket
    if text.peek() == "]":
        return
    while True:
        yield text.value(max_value_bytes)
        mark = text.peek()
        if mark == "]":
            text.skip()
            if rest := text.peek():
                raise RowError("", "nothing after the array's end", f"the text '{printable(rest)}'")
            return
        if mark != ",":
            found = f"the text '{printable(mark)}'" if mark else "the end of the file"
            raise RowError("", "a comma, or the array's end", found)
        text.skip()


class _Text:
    """A file's text, of which only the part being parsed is held in memory."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._stream = io.TextIOWrapper(file, encoding="utf-8-sig")
        self._buffer = ""
        self._at = 0
        self._left = self._max_bytes = max_bytes

    def _more(self, size: int = _CHUNK) -> bool:
        """Read the next chunk, and discard the consumed text."""
        try:
            chunk = self._stream.read(size)
        except UnicodeDecodeError as error:
            raise RowError("", "UTF-8", f"byte 0x{error.object[error.start]:02x}") from None
        self._left -= len(chunk)
        if self._left < 0:
            raise TooMuchDataError(
                f"the file holds too much text: expected at most {self._max_bytes:,} bytes"
            )
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def peek(self) -> str:
        """The next non-blank character; empty at the end."""
        while True:
            found = _NOT_BLANK.search(self._buffer, self._at)
            self._at = len(self._buffer) if found is None else found.start()
            if found is not None or not self._more():
                return self._buffer[self._at : self._at + 1]

    def skip(self) -> None:
        """Skip the next non-blank character."""
        self._at += len(self.peek())

    def value(self, max_bytes: int) -> Any:
        """The next JSON value."""
        self.peek()
        while True:
            found = scan_value(self._buffer, self._at)
            if found is not None and found[1] < len(self._buffer):
                value, self._at = found
                return value
            if len(self._buffer) - self._at > max_bytes:
                raise RowError("", f"at most {max_bytes} bytes in a row", "more")
            if not self._more(max(_CHUNK, len(self._buffer) - self._at)):
                rest, self._buffer = self._buffer[self._at :], ""
                return decode_text(rest)


def csv_columns(line: str, columns: Mapping[str, str] | None = None) -> tuple[list[str], str] | None:
    """The columns and the delimiter of a CSV header line; None for a line that is no header.

    A header names a column of a known row or of `columns`, or at least two columns of other names. pandas' column of
    row numbers has an empty name. Raises DataError for a name that is there twice.
    """
    guess: tuple[list[str], str] | None = None
    for names, named, delimiter in _headers(line):
        if not known_columns().union(columns or ()).isdisjoint(named):
            if twice := [name for name, times in Counter(named).items() if times > 1]:
                header = "the header of the CSV file names "
                raise QuotingError(
                    f"{header}the column {printable(twice[0])!r} twice", f"{header}a column twice"
                )
            return names, delimiter
        if (
            guess is None
            and len(named) > 1
            and len(set(named)) == len(named)
            and all(map(_NAME.fullmatch, named))
        ):
            guess = names, delimiter
    return guess


def possible_columns(line: str) -> list[str]:
    """The columns of a line that is a CSV header if a job renames them: two or more different names that are not
    numbers; else empty."""
    for _, named, _ in _headers(line):
        if len(set(named)) == len(named) > 1 and all(map(_LETTER.search, named)):
            return named
    return []


def _headers(line: str) -> Iterator[tuple[list[str], list[str], str]]:
    """What a line can be as a CSV header: all its cells, the columns that they name, and the delimiter."""
    for delimiter in (",", "\t", ";"):
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
        except csv.Error:
            continue
        named = names[1:] if names and not names[0] else names
        if named and all(map(_COLUMN.fullmatch, named)):
            yield names, named, delimiter


def known_columns() -> frozenset[str]:
    """The keys that a form of some kind of row requires."""
    return frozenset().union(*(form.required for kind in ROW_KINDS.values() for form in kind.forms))


def csv_rows(
    lines: Iterator[str],
    names: list[str],
    delimiter: str,
    max_bytes: int,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Any]:
    """The rows below a CSV header, without empty cells and the cells of a column without a name.

    Cells with messages, or with an array where a row has one, are decoded; other JSON stays the text that it is.
    `columns` renames the columns later. A row with more cells than columns is returned as a RowError.
    """
    csv.field_size_limit(max_bytes)
    forms = [(columns or {}).get(name, name) for name in names]
    try:
        for cells in csv.reader(lines, delimiter=delimiter, strict=True):
            if not cells:
                continue
            if len(cells) > len(names):
                yield RowError("", f"{len(names)} cells, as in the header", str(len(cells)))
                continue
            found = zip(names, forms, cells, strict=False)
            yield {name: _cell(cell, form) for name, form, cell in found if cell and name}
    except csv.Error as error:
        raise DataError(f"the file cannot be read: it is not valid CSV ({error})") from error


_ARRAYS = frozenset({"history", "samples", "tools", "functions"})
"""Keys whose values are arrays of other things than messages."""


def _cell(text: str, key: str) -> Any:
    if text.lstrip()[:1] not in {"[", "{"}:
        return text
    try:
        value = decode_text(text)
    except RowError:
        return text
    if isinstance(value, dict):
        return value if _speaks(value) or "messages" in value else text
    return value if key in _ARRAYS or any(map(_speaks, value)) else text


def _speaks(value: Any) -> bool:
    """Whether a value is a turn of a conversation, if perhaps not a valid one."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


class Renaming:
    """Renames the keys of a file's rows. Raises DataError if two of them get the same name.

    A key `meta.question` also stands for the key `question` in the object `meta`, and `answers.0` for the first
    element of the array `answers`.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._missing = dict(columns)
        self._first: list[str] | None = None
        twice = [name for name, times in Counter(columns.values()).items() if times > 1]
        if twice:
            both = " and ".join(repr(printable(key)) for key, name in columns.items() if name == twice[0])
            raise DataError(f"columns: expected one column for {printable(twice[0])!r}, found {both}")

    def renamed(self, row: Any) -> Any:
        """The row with its keys renamed, without what else has one of the new names."""
        if not isinstance(row, dict):
            return row
        if self._first is None:
            self._first = list(row)
        taken, found = {*self._columns.values()}, {}
        for key, name in self._columns.items():
            value = _value_at(row, key)
            if value is not _NOTHING:
                found[name] = value
                taken.add(key if key in row else key.partition(".")[0])
                self._missing.pop(key, None)
        return {key: value for key, value in row.items() if key not in taken} | found

    def require_found(self) -> None:
        """Raise DataError if no row had a key that is to be renamed."""
        if self._first is not None and self._missing:
            key, name = next(iter(self._missing.items()))
            there = ", ".join(printable(one, 20) for one in self._first[:8])
            missing = f"columns: no row has the column {printable(key)!r}, which is to be {printable(name)!r}"
            raise QuotingError(f"{missing}; the first row has {there or 'none'}", missing)


_NOTHING: Any = object()


def _value_at(row: dict[str, Any], key: str) -> Any:
    """The value under a key, or under the path that a key with dots is; _NOTHING without one."""
    if key in row:
        return row[key]
    value: Any = row if "." in key else {}
    for part in key.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _NOTHING
    return value
