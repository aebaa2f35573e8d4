"""A strict JSON decoder: no duplicate keys, no NaN, no oversized numbers, and no error other than RowError."""

import json
import math
import re
from typing import Any, NoReturn

from alignkit.data.nodes import RowError, printable

EXPECTED = "one JSON object per line"
_BEGUN = re.compile(r"|t|tr|tru|f|fa|fal|fals|n|nu|nul|-|\.|[eE][+-]?")
"""The possible rest of a truncated text after its valid part: nothing, or an incomplete literal or number."""


def decode_line(raw: bytes) -> Any:
    """The value of a line. Raises RowError that names the wrong byte or character, counted from 1."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        cut = ", where the line is cut off" if error.reason == "unexpected end of data" else ""
        found = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}{cut}"
        raise RowError("", "UTF-8", found) from None
    return decode_text(text)


def decode_text(text: str) -> Any:
    """The value of a JSON text. Raises RowError."""
    text = text.rstrip(" \t\r\n")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError("", EXPECTED, _explain(text, error)) from None
    except RecursionError:
        raise RowError("", EXPECTED, "nesting without end") from None
    except ValueError:  # Python refuses to read integers of thousands of digits
        raise RowError("", EXPECTED, "a number of thousands of digits") from None


def scan_value(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value at `start` and its end; None if the value does not end within the text.

    Raises RowError if the text cannot become valid JSON, whatever follows.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if _is_cut(text[error.pos :], error.msg):
            return None
        raise RowError("", "a JSON value", f"text that is not JSON ({error.msg})") from None
    except RecursionError:
        raise RowError("", "a JSON value", "nesting without end") from None
    except ValueError:
        raise RowError("", "a JSON value", "a number of thousands of digits") from None


def _explain(text: str, error: json.JSONDecodeError) -> str:
    if _is_cut(text[error.pos :], error.msg):
        several = ": an object over several lines must be put on one" if text == "{" else ""
        return f"a line cut off after {len(text)} characters{several}"
    if error.msg == "Extra data":
        return f"more after its end, at character {error.pos + 1}"
    return f"text that is not JSON ({error.msg}) at character {error.pos + 1}"


def _is_cut(rest: str, message: str) -> bool:
    """Whether the text is valid JSON so far: it ends inside a string, an escape or a literal, or between tokens."""
    if message.startswith("Invalid \\u"):
        return len(rest) < len("\\u0000")
    return message.startswith("Unterminated") or _BEGUN.fullmatch(rest) is not None


def _refuse_constant(name: str) -> NoReturn:
    raise RowError("", EXPECTED, f"{name}, which JSON does not have")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RowError("", EXPECTED, f"the number {printable(digits, 20)}, which is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RowError("", "each key once in an object", f"'{printable(key)}' twice")
            seen.add(key)
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_float)
