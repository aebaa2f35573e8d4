"""Reads JSON Lines without ever holding more than one line, whatever the file is."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from alignkit.data.formats import RowError, describe
from alignkit.errors import DataError

DEFAULT_MAX_LINE_BYTES = 8 * 2**20
MAX_DECOMPRESSED_BYTES = 8 * 2**30
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: its number from 1, and its value or why it has none."""

    number: int
    value: Any = None
    error: RowError | None = None


def iter_lines(
    path: Path,
    *,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    max_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> Iterator[Line]:
    """Every line of a .jsonl or gzipped file that is not blank, decoded.

    A line over `max_line_bytes` is skipped without being held; a gzip that grows over `max_bytes` ends the
    reading. Raises DataError where the file cannot be read at all.
    """
    try:
        with _open(path) as file:
            yield from _decode(file, max_line_bytes, max_bytes)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
        raise DataError(f"{path.name} cannot be read: {reason}") from error


def _open(path: Path) -> BinaryIO:
    file = path.open("rb")
    is_gzip = file.peek(2)[:2] == b"\x1f\x8b"
    return gzip.GzipFile(fileobj=file) if is_gzip else file  # type: ignore[return-value]


def _decode(file: BinaryIO, max_line_bytes: int, max_bytes: int) -> Iterator[Line]:
    number = total = 0
    while raw := file.readline(max_line_bytes + 1):
        number += 1
        total += len(raw)
        if total > max_bytes:
            yield Line(number, error=RowError("", f"at most {max_bytes} bytes in the file", shown="more"))
            return
        if len(raw) > max_line_bytes and not raw.endswith(b"\n"):
            length = len(raw)
            while chunk := file.readline(max_line_bytes):
                length += len(chunk)
                total += len(chunk)
                if chunk.endswith(b"\n") or total > max_bytes:
                    break
            yield Line(
                number, error=RowError("", f"at most {max_line_bytes} bytes in a line", shown=f"{length}")
            )
            continue
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if raw.strip():
            yield _parse(number, raw)


def _parse(number: int, raw: bytes) -> Line:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Line(
            number,
            error=RowError("", "UTF-8", shown=f"byte 0x{raw[error.start]:02x} at position {error.start}"),
        )
    return _parse_text(number, text)


def _parse_text(number: int, text: str) -> Line:
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        cut = (
            " (the line is cut off)"
            if error.pos >= len(text.rstrip()) - 1 or "Unterminated" in error.msg
            else ""
        )
        return Line(number, error=RowError("", "JSON", shown=f"{error.msg} at character {error.colno}{cut}"))
    except RowError as error:
        return Line(number, error=error)
    except RecursionError:
        return Line(number, error=RowError("", "JSON", shown="nesting without end"))
    except ValueError as error:
        return Line(number, error=RowError("", "JSON", shown=str(error)[:80]))
    if isinstance(value, list):
        hint = "one JSON object a line (JSON Lines), not one array"
        return Line(number, error=RowError("", hint, shown=describe(value)))
    return Line(number, value)


def _refuse_constant(name: str) -> None:
    raise RowError("", "JSON", shown=f"{name}, which JSON does not have")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("", "each key once", shown=f"{twice[:40]!r} twice in one object")
    return result
