"""What an upload refuses: files in which no job could read a row. All that a job could read passes."""

import gzip
import json
import random
from pathlib import Path

import pytest

from alignkit.data.reading import iter_lines
from alignkit.data.structure import FIRST_ROWS, UNPACKED_BYTES, require_rows
from alignkit.errors import DataError
from tests.data.test_tables import ROWS, as_array, as_csv, as_lines, as_parquet

FORMS = {
    "lines": as_lines(ROWS),
    "array": as_array(ROWS),
    "csv": as_csv(ROWS),
    "semicolons": as_csv(ROWS, ";"),
    "tabs": as_csv(ROWS, "\t"),
    "parquet": as_parquet(ROWS),
    "byte order mark": b"\xef\xbb\xbf" + as_lines(ROWS),
    "leading blank lines": b"\n \r\n" + as_lines(ROWS),
    "columns that a job renames": b"The question,Answer 1,Answer 2\nq,yes,no\n",
    "row numbers of pandas": b",prompt,chosen,rejected\n0,q,yes,no\n",
    "keys that a job renames": as_lines([{"question": "q", "good": "yes"}]),
    "bad rows that a job leaves out": b"not JSON\n" * (FIRST_ROWS - 1) + as_lines(ROWS),
    "a last row that is cut off": as_lines(ROWS)[:-5],
}
NOISE = random.Random(0).randbytes(200_000)
WHOLE = gzip.compress(as_lines(ROWS * 500), mtime=0)
GARBAGE = {
    "nothing": (
        b"",
        "the file is empty: expected JSON Lines, a JSON array or CSV, plain or gzipped, or Parquet",
    ),
    "blank lines": (b"\n \n", "the file is empty"),
    "gzip of nothing": (gzip.compress(b""), "the file is empty"),
    "noise": (NOISE, "the first 100 rows cannot be read; line 1: expected UTF-8, found byte 0x"),
    "gzip of noise": (gzip.compress(NOISE), "cannot be read; line 1: expected UTF-8"),
    "picture": (b"\x89PNG\r\n\x1a\n" + NOISE, "the file is a PNG picture: expected JSON Lines"),
    "photograph": (b"\xff\xd8\xff\xe0" + NOISE, "the file is a JPEG picture"),
    "document": (b"%PDF-1.7\n" + NOISE, "the file is a PDF document"),
    "archive": (b"PK\x03\x04" + NOISE, "the file is a zip archive"),
    "zstd": (b"\x28\xb5\x2f\xfd" + NOISE, "the file is a zstd file"),
    "UTF-16": (as_lines(ROWS).decode().encode("utf-16"), "the file is UTF-16 text"),
    "prose": (b"It was a dark night.\nRain fell.\n", "the first 2 rows cannot be read; line 1: expected"),
    "numbers": (b"1\n2\n", "line 1: expected one JSON object in a row, found the number 1"),
    "CSV of numbers": (b"1,2,3\n4,5,6\n", "the first 2 rows cannot be read; line 1"),
    "CSV of nonsense": (b"asdf;;,;\n;,;;;qwe\n,,,\n", "the first 3 rows cannot be read; line 1"),
    "CSV with a longer row": (b"foo,bar\n1,2,3\n", "its only row cannot be read; row 1: expected 2 cells"),
    "CSV of one cell": (b"foo,bar\n1\n", "row 1: expected a row with cells in several columns, found 1"),
    "CSV without rows": (b"prompt,chosen,rejected\n", "the file is empty"),
    "array of numbers": (b"[1, 2]", "row 1: expected one JSON object in a row, found the number 1"),
    "array of nothing": (b"[nothing]", "its only row cannot be read; row 1: expected a JSON value"),
    "line that never ends": (b'{"a": "' + b"x" * 5000, "expected at most 1000 bytes in a line"),
    "gzip that is cut off": (WHOLE[:-9], "the file cannot be read: its gzip data is damaged or cut off"),
    "gzip cut early": (WHOLE[:20], "its gzip data is damaged or cut off"),
    "gzip with another sum": (WHOLE[:-8] + b"abcd" + WHOLE[-4:], "its gzip data is damaged or cut off"),
    "no gzip": (b"\x1f\x8bnot gzip", "its gzip data is damaged or cut off at its start"),
    "parquet that is cut off": (as_parquet(ROWS)[:-20], "it is a Parquet file that is damaged or cut off"),
    "parquet of nothing": (b"PAR1", "it is a Parquet file that is damaged or cut off"),
    "parquet with another end": (
        b"PAR1" + NOISE + b"PAR1",
        "it is a Parquet file that is damaged or cut off",
    ),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_job_can_read_passes(tmp_path: Path, form: str, pack: type[bytes]) -> None:
    path = tmp_path / "file"
    path.write_bytes(FORMS[form] if form == "parquet" else pack(FORMS[form]))
    require_rows(path)


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_no_job_can_read_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    content, words = GARBAGE[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        require_rows(path, max_line_bytes=1000)
    assert words in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_a_bomb_is_left_to_the_job_after_a_bounded_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(b"\n" * 10_000_000))
    require_rows(path, max_line_bytes=1000)
    monkeypatch.setattr("alignkit.data.structure.UNPACKED_BYTES", 2**20)
    path.write_bytes(gzip.compress(b"{}\n" * 2_000_000)[:-9])  # the damage lies behind what is unpacked
    require_rows(path)
    assert UNPACKED_BYTES > 2**20


def test_rows_behind_the_first_readable_one_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "file", []
    path.write_bytes(as_lines([{"n": n} for n in range(10_000)]))

    def counted(*arguments: object, **options: object) -> object:
        for line in iter_lines(*arguments, **options):  # type: ignore[arg-type]
            read.append(json.dumps(line.value))
            yield line

    monkeypatch.setattr("alignkit.data.structure.iter_lines", counted)
    require_rows(path)
    assert read == ['{"n": 0}']
