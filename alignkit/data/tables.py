"""Rows of JSON arrays, CSV and Parquet files, read without holding a whole file in memory."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from alignkit.data.decoding import decode_text, scan_value
from alignkit.data.nodes import RowError, printable
from alignkit.data.rows import ROW_KINDS
from alignkit.errors import DataError

PARQUET = b"PAR1"
"""First bytes of a Parquet file."""
_BATCH_ROWS = 64
_CHUNK = 2**16
_NOT_BLANK = re.compile(r"\S")
_COLUMN = re.compile(r"[\w .:/-]{1,64}")


def parquet_rows(path: Path, *, max_bytes: int, max_rows: int) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises DataError if it is damaged or too large.

    Arrow gives every object the keys of all others; keys without a value are removed again.
    """
    from pyarrow import ArrowException  # saves pyarrow at start-up
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            if file.metadata.num_rows > max_rows:
                raise DataError(
                    f"the file holds too many rows: expected at most {max_rows:,}, found {file.metadata.num_rows:,}"
                )
            left = max_bytes
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                left -= batch.nbytes
                if left < 0:
                    raise DataError(f"the file holds too much text: expected at most {max_bytes:,} bytes")
                yield from map(_without_nulls, batch.to_pylist())
    except (ArrowException, OSError) as error:
        raise DataError(f"the file cannot be read: it is a damaged Parquet file ({error})") from error


def _without_nulls(value: Any) -> Any:
    """A value as JSON, without keys whose value is null."""
    if isinstance(value, dict):
        return {str(key): _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(inner) for inner in value]
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
            raise DataError(f"the file holds too much text: expected at most {self._max_bytes:,} bytes")
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


def csv_columns(line: str) -> tuple[list[str], str] | None:
    """The columns and the delimiter of a CSV header line; None if it is not a header of known rows."""
    for delimiter in (",", "\t", ";"):
        try:
            names = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        plain = len(names) > 1 and len(set(names)) == len(names) and all(map(_COLUMN.fullmatch, names))
        if plain and not _known_columns().isdisjoint(names):
            return names, delimiter
    return None


def _known_columns() -> frozenset[str]:
    return frozenset().union(*(form.required for kind in ROW_KINDS.values() for form in kind.forms))


def csv_rows(lines: Iterator[str], names: list[str], delimiter: str, max_bytes: int) -> Iterator[Any]:
    """The rows below a CSV header. Cells with a JSON object or array are decoded, empty cells left out.

    A row with more cells than columns is returned as a RowError.
    """
    csv.field_size_limit(max_bytes)
    try:
        for cells in csv.reader(lines, delimiter=delimiter, strict=True):
            if not cells:
                continue
            if len(cells) > len(names):
                yield RowError("", f"{len(names)} cells, as in the header", str(len(cells)))
                continue
            yield {name: _cell(cell) for name, cell in zip(names, cells, strict=False) if cell}
    except csv.Error as error:
        raise DataError(f"the file cannot be read: it is not valid CSV ({error})") from error


def _cell(text: str) -> Any:
    if text[:1] not in {"[", "{"}:
        return text
    try:
        return decode_text(text)
    except RowError:
        return text


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """The row with its keys renamed by `columns` (the file's key -> the form's key)."""
    if not columns or not isinstance(row, dict):
        return row
    kept = {key: value for key, value in row.items() if key not in columns and key not in columns.values()}
    return kept | {columns[key]: value for key, value in row.items() if key in columns}
