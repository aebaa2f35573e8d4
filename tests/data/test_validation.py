"""Whole files: every kind of bad one is reported by line, and nothing a file holds raises."""

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.data.dataset import load_rows, to_trl
from alignkit.data.reading import iter_lines
from alignkit.data.validation import check_file
from alignkit.errors import DataError
from tests.preference import row, write_pairs

GOOD = json.dumps(row(1))


def check(tmp_path: Path, content: bytes | str, name: str = "file.jsonl", **options: int):  # type: ignore[no-untyped-def]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return check_file(path, "f_dpo", **options)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (f"{GOOD}\n{GOOD[:50]}", 2, "the line is cut off"),
        (f"{GOOD}\nhello\n", 2, "expected JSON, found Expecting value"),
        (GOOD.encode() + b"\n\xff\xfe\n", 2, "expected UTF-8, found byte 0xff at position 0"),
        (f"[{GOOD}]", 1, "not one array"),
        (f'{GOOD}\n{{"a": 1, "a": 2}}\n', 2, "'a' twice in one object"),
        (f'{GOOD}\n{{"a": NaN}}\n', 2, "NaN, which JSON does not have"),
        (f"{GOOD}\n" + "[" * 100_000 + "\n", 2, "expected JSON"),
        (f"{GOOD}\n\n\n{{}}\n", 4, "expected the keys of a preference row"),
        (f"{GOOD}\n3\n", 2, "expected an object, found the number 3"),
        (f'{GOOD}\n{{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}}\n', 2, "surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes | str, line: int, words: str) -> None:
    report = check(tmp_path, content)
    assert not report.ok
    assert report.issues[0].line == line
    assert words in str(report.issues[0])


def test_an_empty_file(tmp_path: Path) -> None:
    for content in ("", "\n\n  \n"):
        assert "the file is empty" in check(tmp_path, content).summary()


def test_a_long_line_is_skipped_and_the_rest_is_read(tmp_path: Path) -> None:
    report = check(tmp_path, f"{GOOD}\n" + "x" * 10_000_000 + f"\n{GOOD}\n")
    assert (report.rows, report.bad_rows) == (3, 1)
    assert "line 2: expected at most 8388608 bytes in a line, found 10000001" in report.summary()


def test_twenty_lines_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    report = check(tmp_path, "{}\n" * 30 + GOOD)
    assert (report.rows, report.bad_rows, len(report.issues)) == (31, 30, 20)
    assert "30 of 31 rows cannot be used" in report.summary()
    assert report.summary().endswith("and 10 more")


def test_bom_windows_line_ends_blank_lines_and_gzip_are_fine(tmp_path: Path) -> None:
    text = f"\ufeff{GOOD}\r\n\r\n{GOOD}\r\n"
    assert check(tmp_path, text).ok
    assert check(tmp_path, gzip.compress(text.encode())).rows == 2


def test_a_damaged_gzip_a_folder_and_nothing(tmp_path: Path) -> None:
    assert "is damaged" in check(tmp_path, gzip.compress(GOOD.encode() * 50)[:-20]).summary()
    assert "cannot be read" in check_file(tmp_path, "f_dpo").summary()
    assert "No such file" in check_file(tmp_path / "none", "f_dpo").summary()


def test_a_gzip_bomb_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\n" * 5_000_000))
    lines = list(iter_lines(path, max_bytes=1_000_000))
    assert len(lines) == 1
    assert lines[0].error is not None


def test_equal_pairs_are_a_notice_until_every_row_is_one(tmp_path: Path) -> None:
    equal = row(2)
    equal["non_preferred_output"] = equal["preferred_output"]
    some = check(tmp_path, f"{GOOD}\n{json.dumps(equal)}\n")
    assert some.ok
    assert "1 of 2 rows have chosen equal to rejected" in some.summary()
    assert "nothing to learn" in check(tmp_path, f"{json.dumps(equal)}\n" * 3).summary()


def test_unused_keys_are_told(tmp_path: Path) -> None:
    report = check(tmp_path, json.dumps(row(1) | {"weight": 1, "source": "x"}))
    assert report.ok
    assert "keys that are not used: source, weight" in report.summary()


def test_an_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown method 'ppo'"):
        check_file(tmp_path, "ppo")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_report(tmp_path: Path, content: bytes) -> None:
    assert check(tmp_path, content).summary()


def test_a_thousand_rows_take_little_time(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "many.jsonl", 1000)
    best = min(_seconds(path) for _ in range(5))
    assert best < 0.3


def _seconds(path: Path) -> float:
    started = time.perf_counter()
    assert check_file(path, "f_dpo").ok
    return time.perf_counter() - started


def test_rows_reach_trl_as_conversations(tmp_path: Path) -> None:
    rows = load_rows(write_pairs(tmp_path / "pairs.jsonl", 3), "f_dpo")
    dataset = to_trl(rows)
    assert dataset.column_names == ["prompt", "chosen", "rejected"]
    assert dataset[1]["chosen"] == rows[1].chosen
    (tmp_path / "bad.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.jsonl: 1 of 1 rows cannot be used"):
        load_rows(tmp_path / "bad.jsonl", "f_dpo")
