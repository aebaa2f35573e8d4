"""What is read of a file is bounded: long texts are cut, rows not counted are not parsed, checks are kept."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.data.validation import FileReport
from alignkit_server.children import work
from alignkit_server.pools import file_check_pool
from alignkit_server.pools.file_check_pool import Bounds, KnownChecks, check_file, on_file
from tests.server.support import pairs
from tests.tiny import build_tiny_tokenizer

LONG = 2_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_tokenizer(path)
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def rows(folder: Path, max_length: int, *which: int) -> work.Rows:
    return work.Rows("f_dpo", {}, folder, None, max_length, (which[0], which[1]))


def long_rows(path: Path, count: int) -> Path:
    row = json.loads(pairs(1))
    row["input"]["messages"][0]["content"] = "a b " * (LONG // 4)
    path.write_bytes(gzip.compress((json.dumps(row) + "\n").encode() * count))
    return path


def test_a_long_text_is_cut_before_it_is_tokenised(tmp_path: Path, folder: Path) -> None:
    path = long_rows(tmp_path / "rows.jsonl.gz", 3)
    assert path.stat().st_size < 64 * 1024
    shown = work.preview(path, rows(folder, 64, 1, 3))
    assert [row["index"] for row in shown] == [2, 3]
    assert shown[0]["notes"][-1] == f"texts are shown up to {64 * work.CHARACTERS:,} characters"
    tokens = sum(segment["tokens"] for segment in shown[0]["sequences"]["chosen"])
    assert 64 < tokens < 64 * work.CHARACTERS + 100
    lengths, counted = work.sample(path, rows(folder, 64, 2, 3))
    assert counted == 2
    assert lengths is None, "the prompt alone fills max_length, cut or not"


def test_what_must_stay_json_is_not_cut() -> None:
    call = {"function": {"name": "f", "arguments": "x" * 100}}
    assert work._cut({"a": ["y" * 100], "tool_calls": [call]}, 10) == (
        {"a": ["y" * 10], "tool_calls": [call]},
        True,
    )
    assert work._cut({"a": ["y"], "b": None}, 10) == ({"a": ["y"], "b": None}, False)


def test_rows_that_are_not_counted_are_not_parsed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").write_bytes(pairs(10))
    parsed: list[int] = []
    row = work._row
    monkeypatch.setattr(work, "_row", lambda line, *rest: (parsed.append(line.number), row(line, *rest))[1])
    assert work.sample(tmp_path / "rows", rows(folder, 128, 4, 10))[1] == 3
    assert parsed == [1, 5, 9]


class Children:
    """Does in this process what it is asked, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self, function: Any, *arguments: Any, gone: object) -> Any:
        self.calls += 1
        return function(*arguments)


@pytest.fixture
def children() -> Any:
    children: Any = Children()
    token = file_check_pool._bounds.set(Bounds(children, None, KnownChecks()))  # type: ignore[arg-type]
    yield children
    file_check_pool._bounds.reset(token)


def test_a_check_is_kept_until_the_file_or_the_question_changes(tmp_path: Path, children: Children) -> None:
    path = long_rows(tmp_path / "rows.jsonl.gz", 2)
    for _ in range(3):
        assert check_file(path, "f_dpo", columns={}, skip_bad=0, max_line_bytes=2**24).rows == 2
    assert children.calls == 1
    check_file(path, "supervised", columns={}, skip_bad=0, max_line_bytes=2**24)
    assert children.calls == 2
    long_rows(path, 3)
    assert check_file(path, "f_dpo", columns={}, skip_bad=0, max_line_bytes=2**24).rows == 3


def test_a_report_is_kept_however_many_rows_its_file_has_unless_it_is_large_itself() -> None:
    known = KnownChecks()
    many_rows = FileReport(300_000, 0, (), digests=frozenset({b"a"}), prompts=frozenset({b"b"}))
    known.keep("many rows", many_rows)
    assert known.get("many rows") is many_rows
    digests = frozenset(number.to_bytes(4) for number in range(file_check_pool.KEPT_DIGESTS))
    known.keep("many digests", FileReport(300_000, 0, (), digests=digests, prompts=frozenset({b"b"})))
    assert known.get("many digests") is None


def test_small_files_need_no_child_and_compressed_ones_do(tmp_path: Path, children: Children) -> None:
    (tmp_path / "small").write_bytes(pairs(3))
    assert on_file(tmp_path / "small", lambda path: path.name) == "small"
    assert children.calls == 0
    for name, content in (
        ("gzip", gzip.compress(b"{}")),
        ("large", b"x" * (file_check_pool.INLINE_BYTES + 1)),
    ):
        (tmp_path / name).write_bytes(content)
        assert on_file(tmp_path / name, lambda path: path.name) == name
    assert children.calls == 2
