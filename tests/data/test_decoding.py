"""The JSON decoder refuses what Python accepts, and tells truncated lines from other mistakes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.decoding import decode_line, decode_text
from alignkit.data.nodes import RowError
from tests.data.strategies import JSON

LINE = json.dumps({"prompt": "naïve ☕", "n": [True, None, -1.5e3], "o": {"a": ""}})


@given(JSON)
def test_what_json_can_say_is_read(value: Any) -> None:
    text = json.dumps(value)
    if "NaN" not in text and "Infinity" not in text:
        assert decode_text(text) == value


@pytest.mark.parametrize("length", range(1, len(LINE)))
def test_a_cut_is_called_a_cut_wherever_it_falls(length: int) -> None:
    with pytest.raises(RowError, match=r"cut off after \d+ characters"):
        decode_line(LINE[:length].encode())


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (
            b"hello",
            "expected one JSON object per line, found text that is not JSON (Expecting value) at character 1",
        ),
        (b'{"a": 1}}', "found more after its end, at character 9"),
        (b'{"a": 1} {"a": 2}', "found more after its end, at character 10"),
        (b'{"a": NaN}', "found NaN, which JSON does not have"),
        (b'{"a": -Infinity}', "found -Infinity, which JSON does not have"),
        (b'{"a": 1e999}', "found the number 1e999, which is too large"),
        (b'{"a": ' + b"1" * 5000 + b"}", "found a number of thousands of digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "expected each key once in an object, found 'c' twice"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "found '\\ud800' twice"),
        (b"[" * 100_000, "found nesting without end"),
        (b'{"a":' * 100_000, "found nesting without end"),
        (b'{"a": "\t"}', "(Invalid control character at) at character 8"),
        (b'{"a": "x\xff"}', "expected UTF-8, found byte 0xff at position 9"),
        ("é".encode()[:1], "found byte 0xc3 at position 1, where the line is cut off"),
    ],
)
def test_what_is_no_json_is_named(raw: bytes, sentence: str) -> None:
    with pytest.raises(RowError) as caught:
        decode_line(raw)
    assert sentence in str(caught.value)


def test_many_keys_with_one_twice_take_little_time() -> None:
    pairs = ",".join(f'"{number}":0' for number in range(100_000))
    with pytest.raises(RowError, match="'99999' twice"):
        decode_text(f'{{{pairs},"99999":0}}')


@given(st.binary(max_size=100))
def test_any_bytes_give_a_value_or_a_row_error(raw: bytes) -> None:
    try:
        decode_line(raw)
    except RowError as error:
        str(error).encode()
