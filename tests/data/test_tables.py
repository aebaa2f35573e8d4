"""JSON arrays, CSV and Parquet are read as JSON Lines are, whatever the file is called."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.data import check_file, load_rows, parse_preference
from alignkit.data.reading import iter_lines
from tests.data.strategies import EXACT_JSON, rows, trl

ROWS = [{"prompt": f'q "{n}", a\nb', "chosen": "yes", "rejected": "no"} for n in range(5)]


def as_lines(values: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, values)).encode()


def as_array(values: list[Any]) -> bytes:
    return json.dumps(values, indent=2).encode()


def as_csv(values: list[Any], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    names = list(dict.fromkeys(name for value in values for name in value))
    writer = csv.DictWriter(text, names, delimiter=delimiter)
    writer.writeheader()
    for value in values:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()})
    return text.getvalue().encode()


def as_parquet(values: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values), sink)
    return sink.getvalue()


@pytest.mark.parametrize("write", [as_lines, as_array, as_csv, as_parquet])
def test_every_format_gives_the_same_rows(tmp_path: Path, write: Callable[[list[Any]], bytes]) -> None:
    file = tmp_path / "rows"
    file.write_bytes(write(ROWS))
    assert load_rows(file, "f_dpo") == [parse_preference(row) for row in ROWS]
    if write is not as_parquet:
        file.write_bytes(gzip.compress(b"\xef\xbb\xbf" + write(ROWS)))
        assert load_rows(file, "f_dpo") == [parse_preference(row) for row in ROWS]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EXACT_JSON, max_size=6), st.sampled_from([None, 1, 4]))
def test_an_array_of_anything_is_read_as_json_reads_it(
    tmp_path: Path, values: list[Any], indent: int | None
) -> None:
    (tmp_path / "rows").write_text(json.dumps(values, indent=indent))
    assert [line.value for line in iter_lines(tmp_path / "rows")] == values


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows().map(trl), min_size=1, max_size=4))
def test_nested_rows_pass_through_parquet_and_csv(tmp_path: Path, drawn: list[Any]) -> None:
    for write in (as_parquet, as_csv):
        (tmp_path / "rows").write_bytes(write(drawn))
        found = [parse_preference(line.value) for line in iter_lines(tmp_path / "rows")]
        assert found == [parse_preference(row) for row in drawn]


def test_parquets_nulls_are_no_keys(tmp_path: Path) -> None:
    mixed: list[Any] = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a", "weight": 1}]},
        {
            "messages": [
                {"role": "user", "content": "Hi", "name": "ann"},
                {"role": "assistant", "content": "b"},
            ]
        },
    ]
    (tmp_path / "rows").write_bytes(as_parquet(mixed))
    report = check_file(tmp_path / "rows", "supervised")
    assert (report.ok, report.notices) == (True, ())


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csvs_delimiters(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "rows").write_bytes(as_csv(ROWS, delimiter))
    assert len(load_rows(tmp_path / "rows", "f_dpo")) == 5


def test_a_bad_row_is_named_by_its_number_from_1(tmp_path: Path) -> None:
    bad = [*ROWS[:2], ROWS[2] | {"chosen": ""}, *ROWS[3:]]
    for write in (as_array, as_csv, as_parquet):
        (tmp_path / "rows").write_bytes(write(bad))
        assert check_file(tmp_path / "rows", "f_dpo").findings()[0].startswith("row 3, /chosen: expected")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'[{"prompt": "a"', "row 1: expected one JSON object per line, found a line cut off after"),
        (b"[1 2]", "row 2: expected a comma, or the array's end, found the text '2'"),
        (b"[{}, {]", "row 2: expected a JSON value, found text that is not JSON"),
        (b"[\xff]", "row 1: expected UTF-8, found byte 0xff"),
        (b"prompt,chosen,rejected\na,b,c,d\n", "row 1: expected 3 cells, as in the header, found 4"),
        (b'prompt,chosen,rejected\na,"b,c\n', "it is not valid CSV"),
        (b"prompt,chosen,rejected\na,\xff,c\n", "the file is not UTF-8: found byte 0xff"),
        (b"prompt,chosen,rejected\n", "the file is empty"),
        (b"[]", "the file is empty"),
    ],
    ids=str,
)
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "rows").write_bytes(content)
    report = check_file(tmp_path / "rows", "f_dpo")
    assert not report.ok
    assert sentence in report.summary()


def test_limits_hold_for_every_format(tmp_path: Path) -> None:
    for write in (as_array, as_csv, as_parquet):
        (tmp_path / "rows").write_bytes(write(ROWS * 20))
        assert "the file holds too much text" in str(
            check_file(tmp_path / "rows", "f_dpo", max_bytes=200).problem
        )
        assert "too many" in str(check_file(tmp_path / "rows", "f_dpo", max_lines=10).problem)


def test_columns_are_renamed(tmp_path: Path) -> None:
    own = [{"question": f"q{n}", "good": "yes", "bad": "no", "prompt": "of no use"} for n in range(3)]
    columns = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    for write in (as_lines, as_array, as_csv, as_parquet):
        (tmp_path / "rows").write_bytes(write(own))
        if write is as_csv:
            (tmp_path / "rows").write_bytes(write([{"id": "1", **row} for row in own]))
        found = load_rows(tmp_path / "rows", "f_dpo", columns=columns)
        assert [row.prompt[0]["content"] for row in found] == ["q0", "q1", "q2"]


def read(path: Path, content: bytes | str, columns: dict[str, str] | None = None) -> list[Any]:
    (path / "rows").write_bytes(content.encode() if isinstance(content, str) else content)
    return [line.value for line in iter_lines(path / "rows", columns=columns)]


def told(path: Path, content: bytes | str, columns: dict[str, str] | None = None) -> str:
    (path / "rows").write_bytes(content.encode() if isinstance(content, str) else content)
    report = check_file(path / "rows", "f_dpo", columns=columns)
    assert not report.ok
    return report.summary()


def test_json_in_a_csv_cell_is_text_unless_it_is_messages(tmp_path: Path) -> None:
    answers = ['{"a": 1}', "[1, 2]", '[{"a": 1}]', "[1] is a note"]
    said = json.dumps([{"role": "assistant", "content": "yes"}])
    given = [{"prompt": "Hi", "chosen": answer, "rejected": said} for answer in answers]
    assert read(tmp_path, as_csv(given)) == [row | {"rejected": json.loads(said)} for row in given]


def test_a_wrong_message_in_a_csv_cell_is_not_text(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": json.dumps([{"role": "assistant"}]), "rejected": "no"}
    assert "row 1, /chosen/0/content: expected" in told(tmp_path, as_csv([row]))


def test_arrays_of_other_things_are_decoded_from_csv_under_their_own_or_a_renamed_column(
    tmp_path: Path,
) -> None:
    past = [["q", "a"]]
    row = {"instruction": "Hi", "history": json.dumps(past), "chosen": "yes", "rejected": "no"}
    assert read(tmp_path, as_csv([row]))[0]["history"] == past
    row = {("past" if key == "history" else key): value for key, value in row.items()}
    assert read(tmp_path, as_csv([row]), {"past": "history"})[0]["history"] == past


@pytest.mark.parametrize(
    "header",
    [",prompt,chosen,rejected", "prompt, chosen, rejected", "\ufeffprompt,chosen,rejected\r"],
    ids=["pandas' row numbers", "spaces", "BOM and CRLF"],
)
def test_headers_as_programs_write_them(tmp_path: Path, header: str) -> None:
    first = "0," if header.startswith(",") else ""
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    assert read(tmp_path, f"{header}\n{first}Hi,yes,no\n") == [row]


def test_a_csv_of_one_column(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
    assert read(tmp_path, as_csv([{"messages": json.dumps(messages)}])) == [{"messages": messages}]


def test_a_header_of_unknown_columns_is_a_header(tmp_path: Path) -> None:
    content = "Ask,Good,Bad\nHi,yes,no\n"
    assert "found the keys Ask, Bad, Good; a mapping of columns may rename them" in told(tmp_path, content)
    columns = {"Ask": "prompt", "Good": "chosen", "Bad": "rejected"}
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    assert read(tmp_path, content, columns) == [row]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "names the column 'prompt' twice" in told(tmp_path, "prompt,chosen,prompt\na,b,c\n")


def test_files_with_a_bom_each_can_be_joined(tmp_path: Path) -> None:
    one = b"\xef\xbb\xbf" + as_lines(ROWS[:1]) + b"\r\n"
    assert read(tmp_path, one * 2) == [ROWS[0]] * 2


def test_bytes_in_parquet_are_their_text_or_refused(tmp_path: Path) -> None:
    row = {"prompt": b"Hi", "chosen": "é".encode(), "rejected": b"no"}
    assert read(tmp_path, as_parquet([row])) == [{"prompt": "Hi", "chosen": "é", "rejected": "no"}]
    found = "row 1: expected text, or bytes of UTF-8 text, found 2 other bytes in /chosen"
    assert found in told(tmp_path, as_parquet([row | {"chosen": b"\xff\xfe"}]))


def test_a_column_s_dots_reach_into_objects_and_arrays(tmp_path: Path) -> None:
    own = {"meta": {"q": "Hi"}, "answers": ["yes", "no"], "id": 1}
    columns = {"meta.q": "prompt", "answers.0": "chosen", "answers.1": "rejected"}
    expected = {"id": 1, "prompt": "Hi", "chosen": "yes", "rejected": "no"}
    assert read(tmp_path, as_lines([own]), columns) == [expected]
    flat = {"meta.q": "Ho", "answers": ["yes", "no"], "id": 1}
    assert read(tmp_path, as_lines([flat]), columns) == [expected | {"prompt": "Ho"}]


def test_a_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    own = [{"question": "Hi", "chosen": "yes", "rejected": "no"}]
    assert (
        "no row has the column 'qestion', which is to be 'prompt'; the first row has question, chosen, rejected"
    ) in told(tmp_path, as_lines(own), {"qestion": "prompt"})


def test_two_columns_for_one_key_are_refused(tmp_path: Path) -> None:
    own = [{"q": "Hi", "p": "Ho", "chosen": "yes", "rejected": "no"}]
    said = told(tmp_path, as_lines(own), {"q": "prompt", "p": "prompt"})
    assert "columns: expected one column for 'prompt', found 'q' and 'p'" in said
