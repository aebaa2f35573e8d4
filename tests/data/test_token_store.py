"""Rows are rendered once: what names an entry, what it returns, and what a damaged one does."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from alignkit import sealed
from alignkit.data.dataset import load
from alignkit.data.token_store import TokenStore
from alignkit.data.tokens import TokenSequence
from alignkit.errors import DataError
from tests.preference import write_pairs


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The rows that were rendered, in order."""
    from alignkit.data.rows import PreferenceRow

    found, own = [], PreferenceRow.render

    def render(row: PreferenceRow, tokenizer: Any) -> list[TokenSequence]:
        found.append(row)
        return own(row, tokenizer)

    monkeypatch.setattr(PreferenceRow, "render", render)
    return found


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def test_a_second_run_renders_no_row_and_has_the_same_sequences(
    tmp_path: Path, tokenizer: Any, rendered: list[object]
) -> None:
    file, store = write_pairs(tmp_path / "pairs.jsonl", 6), TokenStore(tmp_path / "tokens")
    plain = load(file, "f_dpo", tokenizer)
    first = load(file, "f_dpo", tokenizer, store=store)
    assert len(rendered) == 12
    second = load(file, "dpo", copy.deepcopy(tokenizer), store=store, max_length=32)
    assert len(rendered) == 12
    assert plain.sequences == first.sequences == second.sequences
    assert (first.report, second.rows) == (plain.report, plain.rows)
    assert [(path.parent.name, path.suffix) for path in entries(store.folder)] == [("pairs.jsonl", ".tokens")]


def test_only_a_file_whose_rows_were_all_stored_is_reported(tmp_path: Path, tokenizer: Any) -> None:
    told: list[str] = []
    file, store = write_pairs(tmp_path / "pairs.jsonl", 3), TokenStore(tmp_path / "tokens", told.append)
    load(file, "f_dpo", tokenizer, store=store)
    assert told == []
    load(file, "f_dpo", tokenizer, store=store)
    assert told == ["pairs.jsonl: the token ids of its rows are those that an earlier run stored"]


def test_an_entry_that_is_read_counts_as_used(tmp_path: Path, tokenizer: Any) -> None:
    file, store = write_pairs(tmp_path / "pairs.jsonl", 3), TokenStore(tmp_path / "tokens")
    load(file, "f_dpo", tokenizer, store=store)
    load(file, "kto", tokenizer, store=store)
    used, unused = entries(store.folder)
    for path in (used, unused):
        os.utime(path, (1, 1))
    load(file, "f_dpo", tokenizer, store=store)
    load(file, "kto", tokenizer, store=store)
    os.utime(unused, (1, 1))
    assert sealed.remove_unused(store.folder) == 1
    assert entries(store.folder) == [used]


def test_another_file_template_or_kind_of_row_is_another_entry(tmp_path: Path, tokenizer: Any) -> None:
    store, file = TokenStore(tmp_path / "tokens"), write_pairs(tmp_path / "pairs.jsonl", 3)
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("assistant", "model")
    load(file, "f_dpo", tokenizer, store=store)
    load(file, "f_dpo", other, store=store)
    load(file, "kto", tokenizer, store=store)
    load(write_pairs(file, 4), "f_dpo", tokenizer, store=store)
    assert len(entries(store.folder)) == 4
    assert load(file, "f_dpo", other, store=store).sequences == load(file, "f_dpo", other).sequences


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda _: b""])
def test_a_damaged_entry_is_rendered_and_written_again(
    tmp_path: Path, tokenizer: Any, rendered: list[object], damage: Any
) -> None:
    file, store = write_pairs(tmp_path / "pairs.jsonl", 3), TokenStore(tmp_path / "tokens")
    expected = load(file, "f_dpo", tokenizer, store=store).sequences
    (entry,) = entries(store.folder)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert load(file, "f_dpo", tokenizer, store=store).sequences == expected
    assert (len(rendered), entry.read_bytes()) == (6, whole)


def test_a_template_with_the_date_is_rendered_every_time(tmp_path: Path, tokenizer: Any) -> None:
    store, dated = TokenStore(tmp_path / "tokens"), copy.deepcopy(tokenizer)
    dated.chat_template = "{% set today = strftime_now('%d') %}" + tokenizer.chat_template
    load(write_pairs(tmp_path / "pairs.jsonl", 2), "f_dpo", dated, store=store)
    assert entries(store.folder) == []


def test_a_refused_file_and_a_folder_that_cannot_be_written_store_nothing(
    tmp_path: Path, tokenizer: Any
) -> None:
    store = TokenStore(tmp_path / "tokens")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b"}')
    with pytest.raises(DataError):
        load(tmp_path / "bad.jsonl", "f_dpo", tokenizer, store=store)
    assert entries(store.folder) == []
    store.folder.write_text("a file")
    assert len(load(write_pairs(tmp_path / "pairs.jsonl", 2), "f_dpo", tokenizer, store=store).rows) == 2
