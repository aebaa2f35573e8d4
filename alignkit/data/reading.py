"""Reads data files row by row: JSON Lines, a JSON array, CSV (each plain or gzipped), and Parquet."""

import gzip
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from alignkit.data.decoding import EXPECTED, decode_line
from alignkit.data.nodes import RowError, describe
from alignkit.data.tables import PARQUET, Renaming, array_values, csv_columns, csv_rows, parquet_rows
from alignkit.errors import DataError, TooMuchDataError

DEFAULT_MAX_LINE_BYTES = 8 * 2**20
DEFAULT_MAX_BYTES = 2 * 2**30
"""Limit of the decompressed text: a gzip of a few MB can contain many GB."""
DEFAULT_MAX_LINES = 2_000_000
"""Limit of lines, including blank ones: a gzip of half a MB can contain hundreds of millions."""

FORMATS = "JSON Lines, a JSON array or CSV, plain or gzipped, or Parquet"

_PEEKED = 256
_BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
}
"""First bytes of files that people upload by mistake -> description."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file: its number from 1, and its value or the error."""

    number: int
    value: Any = None
    error: RowError | None = None
    unit: str = "line"
    """The unit of the number: a line of text, or a row."""


def iter_lines(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_lines: int = DEFAULT_MAX_LINES,
) -> Iterator[Line]:
    """Every row of a file; its format is recognised by its content, not by its name.

    `columns` maps keys as `Renaming` does. A line over `max_line_bytes` becomes an error and is not held
    in memory. Raises DataError, after the readable rows, if the file as a whole cannot be read: missing, damaged, of
    another type, over `max_bytes` of text or over `max_lines`.
    """
    reader = _Reader(max_line_bytes, max_bytes, max_lines, columns or {})
    renaming = Renaming(columns) if columns else None
    try:
        with ExitStack() as stack:
            for line in reader.rows(path, open_file(path, stack)):
                yield replace(line, value=renaming.renamed(line.value)) if renaming else line
        if renaming:
            renaming.require_found()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        where = f"after line {reader.number}" if reader.number else "at its start"
        raise DataError(f"the file cannot be read: its gzip data is damaged or cut off {where}") from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror or 'input/output error'}") from error


def open_file(path: Path, stack: ExitStack) -> BinaryIO:
    """The file's bytes, decompressed if they are gzipped; closed with `stack`."""
    if stat.S_ISDIR(path.stat().st_mode):
        raise DataError("the file cannot be read: it is a directory")
    file = stack.enter_context(path.open("rb"))
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    return stack.enter_context(gzip.GzipFile(fileobj=file))  # type: ignore[return-value]


class _Reader:
    """Counts lines and bytes while reading; `number` is the current line."""

    def __init__(
        self, max_line_bytes: int, max_bytes: int, max_lines: int, columns: Mapping[str, str]
    ) -> None:
        self.number = 0
        self._max_line_bytes = max_line_bytes
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._columns = columns
        self._first = True

    def rows(self, path: Path, file: Any) -> Iterator[Line]:
        """The rows of a file in any supported format."""
        begin = file.peek(_PEEKED)[:_PEEKED]
        if begin.startswith(PARQUET):
            values = parquet_rows(path, max_bytes=self._max_bytes, max_rows=self._max_lines)
            yield from self._numbered(values)
        elif begin.removeprefix(_BOM).lstrip()[:1] == b"[":
            values = array_values(file, max_value_bytes=self._max_line_bytes, max_bytes=self._max_bytes)
            yield from self._numbered(values)
        else:
            yield from self.lines(file)

    def _numbered(self, values: Iterator[Any]) -> Iterator[Line]:
        """Values as rows; an unreadable value ends them."""
        try:
            for number, value in enumerate(values, start=1):
                if number > self._max_lines:
                    raise TooMuchDataError(
                        f"the file holds too many rows: expected at most {self._max_lines:,}"
                    )
                self.number = number
                is_error = isinstance(value, RowError)
                yield Line(number, None if is_error else value, value if is_error else None, "row")
        except RowError as error:
            yield Line(self.number + 1, error=error, unit="row")

    def lines(self, file: BinaryIO) -> Iterator[Line]:
        """The rows of JSON Lines, or of CSV if the first line is a CSV header."""
        while raw := self._piece(file):
            if self.number == self._max_lines:
                raise TooMuchDataError(
                    f"the file holds too many lines: expected at most {self._max_lines:,}, blank ones included"
                )
            self.number += 1
            raw = raw.removeprefix(_BOM)  # joined files have several
            if self.number == 1:
                _refuse_other_kinds(raw)
            if raw.isspace() or not raw:
                continue
            header = self._header(raw) if self._first else None
            if header is not None:
                rows = csv_rows(self._texts(file), *header, self._max_line_bytes, self._columns)
                yield from self._numbered(rows)
                return
            yield self._line(raw, file)
            self._first = False

    def _header(self, raw: bytes) -> tuple[list[str], str] | None:
        return csv_columns(raw.decode("utf-8", "replace").rstrip("\r\n"), self._columns)

    def _texts(self, file: BinaryIO) -> Iterator[str]:
        """The remaining lines as text."""
        try:
            while raw := self._piece(file):
                yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"the file is not UTF-8: found byte 0x{error.object[error.start]:02x}") from error

    def _line(self, raw: bytes, file: BinaryIO) -> Line:
        if len(raw) > self._max_line_bytes and not raw.endswith(b"\n"):
            length = len(raw) + self._skip_rest(file)
            expected = f"at most {self._max_line_bytes} bytes in a line"
            return self._refused(raw, RowError("", expected, str(length)))
        try:
            value = decode_line(raw)
        except RowError as error:
            return self._refused(raw, error)
        if isinstance(value, list):
            return Line(self.number, error=RowError("", f"{EXPECTED}, not an array", describe(value)))
        return Line(self.number, value)

    def _refused(self, raw: bytes, error: RowError) -> Line:
        if self._first and raw.lstrip()[:1] == b"[":
            raise DataError(f"the file is one JSON array: expected {EXPECTED} (JSON Lines)")
        return Line(self.number, error=error)

    def _skip_rest(self, file: BinaryIO) -> int:
        """Skip to the end of the line; returns the number of bytes skipped, without the line end."""
        length = 0
        while chunk := self._piece(file):
            if chunk.endswith(b"\n"):
                return length + len(chunk) - 1
            length += len(chunk)
        return length

    def _piece(self, file: BinaryIO) -> bytes:
        """The next line, or its first part if it exceeds the limit."""
        piece = file.readline(self._max_line_bytes + 1)
        self._left -= len(piece)
        if self._left < 0:
            raise TooMuchDataError(
                f"the file holds too much text: expected at most {self._max_bytes:,} bytes"
            )
        return piece


def _refuse_other_kinds(raw: bytes) -> None:
    for magic, kind in _OTHER_KINDS.items():
        if raw.startswith(magic):
            raise DataError(f"the file is {kind}: expected {FORMATS}")
