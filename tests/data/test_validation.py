"""Whole files: every kind of bad one is reported by line, and nothing a file holds raises."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.data.validation import FileReport, check_file
from alignkit.errors import DataError
from alignkit.methods import METHODS
from tests.completion import write_completions
from tests.preference import row, write_pairs

GOOD = json.dumps(row(1))
SAME = json.dumps(row(2) | {"non_preferred_output": row(2)["preferred_output"]})
ROWS = "".join(json.dumps(row(index)) + "\n" for index in range(300))


def check(tmp_path: Path, content: bytes | str, **options: int) -> FileReport:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return check_file(path, "f_dpo", **options)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            f"{GOOD}\n{GOOD[:50]}",
            "line 2: expected one JSON object per line, found a line cut off after 50 char",
        ),
        (f"{GOOD}\nhello\n", "line 2: expected one JSON object per line, found text that is not JSON"),
        (GOOD.encode() + b"\n\xe9t\xe9\n", "line 2: expected UTF-8, found byte 0xe9 at position 1"),
        (
            f"[{GOOD}]\n{GOOD}",
            "row 2: expected nothing after the array's end, found the text '{'",
        ),
        (f'{GOOD}\n{{"a": 1, "a": 2}}\n', "line 2: expected each key once in an object, found 'a' twice"),
        (f'{GOOD}\n{{"a": NaN}}\n', "line 2: expected one JSON object per line, found NaN"),
        (f"{GOOD}\n" + "[" * 100_000, "line 2: expected one JSON object per line, found nesting without end"),
        (f"{GOOD}\r\n\r\n\n{{}}\n", "line 4: expected the keys of a preference row (OpenAI: "),
        (f"{GOOD}\n3\n", "line 2: expected an object, found the number 3"),
        (f"{GOOD}\nnull\n", "line 2: expected an object, found null"),
        (
            f'\n{{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}}\n{GOOD}',
            "line 2, /prompt: expected valid Unicode, found half of a surrogate pair",
        ),
        (
            GOOD + "\n" + GOOD.replace('"assistant"', '"user"', 1),
            "line 2, /preferred_output/0/role: expected a turn of an answer (assistant), found the text 'user'",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes | str, sentence: str) -> None:
    report = check(tmp_path, content)
    assert not report.ok
    assert report.bad_rows == 1
    assert str(report.issues[0]).startswith(sentence)
    assert str(report.issues[0]) in report.summary()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty: expected one JSON object per line"),
        ("\n\r\n \t \n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        ("[" + "1," * 10_000_000, "10,000 of the first 10,000 rows cannot be used"),
        ("\n" * 300 + f"[{GOOD},\n{GOOD}]", "the file is one JSON array"),
        (b"PAR1 but no more", "the file cannot be read: it is a damaged Parquet file"),
        (b"PK\x03\x04rest", "the file is a zip archive: expected JSON Lines, a JSON array or CSV"),
        (GOOD.encode("utf-16"), "the file is UTF-16 text"),
        (gzip.compress(ROWS.encode(), mtime=0)[:-900], "its gzip data is damaged or cut off after line 2"),
        (
            gzip.compress(ROWS.encode(), mtime=0)[:-4] + b"abcd",
            "its gzip data is damaged or cut off after line 300",
        ),
        (b"\x1f\x8bnot gzip", "its gzip data is damaged or cut off at its start"),
        (f"{SAME}\n" * 3, "every row has chosen equal to rejected, so there is nothing to train"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_is_bad_as_a_whole_is_told_in_one_sentence(
    tmp_path: Path, content: bytes | str, problem: str
) -> None:
    report = check(tmp_path, content)
    assert not report.ok
    assert report.problem is not None
    assert problem in report.problem
    assert report.summary().startswith(report.problem)


def test_a_folder_and_nothing_at_all(tmp_path: Path) -> None:
    assert check_file(tmp_path, "f_dpo").summary() == "the file cannot be read: it is a directory"
    assert check_file(tmp_path / "none", "f_dpo").summary() == (
        "the file cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_long_line_is_skipped_and_the_rest_is_read(tmp_path: Path, pack: type[bytes]) -> None:
    content = pack(f'{GOOD}\n{{"a": "{"x" * 9_999_990}"}}\n{GOOD}\n'.encode())
    tracemalloc.start()
    report = check(tmp_path, content, max_line_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.rows, report.bad_rows) == (3, 1)
    assert str(report.issues[0]) == "line 2: expected at most 1000000 bytes in a line, found 9999999"
    assert peak < 5_000_000
    assert check(tmp_path, content).bad_rows == 1  # over the limit there is by default, too


def test_a_line_of_just_the_limit_is_read(tmp_path: Path) -> None:
    for end in ("", "\n"):
        assert check(tmp_path, GOOD + end, max_line_bytes=len(GOOD)).ok
        assert not check(tmp_path, GOOD + end, max_line_bytes=len(GOOD) - 2).ok


@pytest.mark.parametrize("content", [b"\n" * 5_000_000, b"x" * 5_000_000, b"{}\n" * 2_000_000])
def test_a_gzip_bomb_is_not_unpacked_to_its_end(tmp_path: Path, content: bytes) -> None:
    report = check(tmp_path, gzip.compress(content), max_bytes=20_000, max_line_bytes=10_000)
    assert report.problem == "the file holds too much text: expected at most 20,000 bytes"


@pytest.mark.parametrize("line", ["", " \r", GOOD])
def test_lines_are_limited_blank_ones_too(tmp_path: Path, line: str) -> None:
    content = GOOD + f"\n{line}" * 9 + "\n"
    assert check(tmp_path, content, max_lines=10).ok
    for pack in (bytes, gzip.compress):
        report = check(tmp_path, pack(f"{content}\n".encode()), max_lines=10)
        assert report.problem == "the file holds too many lines: expected at most 10, blank ones included"


def test_half_a_megabyte_of_blank_lines_is_soon_given_up_on(tmp_path: Path) -> None:
    report = check(tmp_path, gzip.compress(b"\n" * 100_000_000, 1))
    assert report.problem == "the file holds too many lines: expected at most 2,000,000, blank ones included"


def test_rows_that_fail_alike_are_said_once_with_their_number_and_the_first_line(tmp_path: Path) -> None:
    report = check(tmp_path, GOOD + "\n" + "{}\n" * 30)
    assert (report.rows, report.bad_rows, len(report.issues)) == (31, 30, 1)
    assert report.summary().startswith(
        "30 of 31 rows cannot be used\n30 rows, the first at line 2: expected the "
    )
    report = check(
        tmp_path, f'{GOOD}\n{{"prompt": ""}}\n' + '{"prompt": 5, "chosen": "a", "rejected": "b"}\n' * 2
    )
    assert [(issue.line, issue.rows) for issue in report.issues] == [(2, 1), (3, 2)]


def test_kinds_of_mistake_are_limited_and_the_rest_counted(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    mistakes = [json.dumps(pair | {key: ""}) for key in pair]
    report = check(tmp_path, "\n".join([*mistakes, "3", "null x"]), max_issues=2)
    assert len(report.issues) == 2
    assert report.summary().endswith("and 3 more")


def test_bom_windows_line_ends_blank_lines_no_last_line_end_and_gzip_are_fine(tmp_path: Path) -> None:
    text = f"\ufeff{GOOD}\r\n\r\n{GOOD}\r\n \n{GOOD}"
    for content in (text.encode(), gzip.compress(text.encode())):
        report = check(tmp_path, content)
        assert report.summary() == "3 rows, all valid"
    members = gzip.compress(f"{GOOD}\n".encode()) * 2
    assert check(tmp_path, members).rows == 2


def test_equal_pairs_are_a_notice(tmp_path: Path) -> None:
    report = check(tmp_path, f"{GOOD}\n{SAME}\n{GOOD}\n{SAME}\n")
    assert report.ok
    assert report.notices == (
        "2 of 4 rows have chosen equal to rejected and change nothing: the first at line 2",
    )
    one = check(tmp_path, f"{GOOD}\n{SAME}\n")
    assert one.summary().endswith(
        "note: 1 of 2 rows has chosen equal to rejected and changes nothing: the first at line 2"
    )
    assert check(tmp_path, f"{SAME}\n{{}}\n").problem is None  # the bad line is what there is to mend


def test_unused_keys_are_one_notice(tmp_path: Path) -> None:
    extra = {f"key{number}": 1 for number in range(9)}
    report = check(tmp_path, json.dumps(row(1) | {"weight": 1}) + "\n" + json.dumps(row(1) | extra))
    assert report.notices == ("unused keys: key0, key1, key2, key3, key4, key5, key6, key7 and 2 more",)
    many = {f"{number:03}{'x' * 50}": 1 for number in range(1000)}
    (notice,) = check(tmp_path, json.dumps(row(1) | many)).notices
    assert notice.endswith("and at least 92 more")
    assert len(notice) < 600
    check(tmp_path, GOOD[:-1] + ', "\\ud800\\u001b[2J": 1}').summary().encode()


def test_an_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown method 'ppo': expected one of f_dpo"):
        check_file(tmp_path, "ppo")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300) | st.text(max_size=200).map(str.encode), st.sampled_from([bytes, gzip.compress])
)
def test_any_bytes_give_a_report(tmp_path: Path, content: bytes, pack: type[bytes]) -> None:
    assert check(tmp_path, pack(content)).summary().encode()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 600), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_good_file_with_some_bytes_changed_gives_a_report(
    tmp_path: Path, at: int, put: bytes, packed: bool
) -> None:
    content = gzip.compress(ROWS.encode(), mtime=0) if packed else ROWS[:1000].encode()
    assert check(tmp_path, content[:at] + put + content[at + len(put) :]).summary().encode()


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(ROWS,))
    writer.start()
    assert check_file(pipe, "f_dpo").rows == 300
    writer.join()


def test_a_thousand_rows_take_little_time(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "many.jsonl", 1000)
    assert min(_seconds(path) for _ in range(5)) < 0.2  # a third of it on a quiet machine


def _seconds(path: Path) -> float:
    started = time.process_time()
    assert check_file(path, "f_dpo").ok
    return time.process_time() - started


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys, alignkit.data, alignkit.data.validation; "
        "print({'torch', 'transformers', 'trl', 'datasets', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_file_of_nothing_but_bad_lines_is_given_up_on(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"{}\n" * 200_000)
    report = check_file(path, "f_dpo")
    assert not report.ok
    assert (report.rows, report.bad_rows, len(report.issues)) == (10_000, 10_000, 1)
    assert "10,000 of the first 10,000 rows cannot be used" in report.summary()


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.rows == "completion"])
def test_methods_without_pairs_take_completions_and_the_preferred_side_of_pairs(
    tmp_path: Path, method: str
) -> None:
    report = check_file(write_completions(tmp_path / "chat.jsonl"), method)
    assert (report.ok, report.rows, report.notices) == (True, 12, ())
    pairs = check_file(write_pairs(tmp_path / "pairs.jsonl"), method)
    assert pairs.ok
    assert pairs.notices == ("unused keys: non_preferred_output",)
    idle = tmp_path / "idle.jsonl"
    idle.write_text(
        (tmp_path / "chat.jsonl").read_text().replace("}]}", ', "weight": 0}]}'), encoding="utf-8"
    )
    assert check_file(idle, method).problem == (
        "every row has no turn that carries loss, so there is nothing to train"
    )
