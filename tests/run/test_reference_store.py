"""Entries of the reference store: exact values, damage, two writers, and what is removed."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.recipe import Recipe
from alignkit.run.reference_store import ReferenceStore, worth_storing

KEY, OTHER = "ab" * 32, "cd" * 32
VALUES = [-1.5, -0.1015625, 0.0]


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return ReferenceStore(tmp_path / "references")


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_values_come_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    store = ReferenceStore(tmp_path_factory.getbasetemp() / "bits")
    store.write(KEY, values)
    assert store.read(KEY, len(values)) == values


def test_an_entry_that_is_missing_or_of_another_length_is_none(store: ReferenceStore) -> None:
    assert store.read(KEY, 3) is None
    store.write(KEY, VALUES)
    assert store.read(KEY, 2) is None


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_flipped_bit_anywhere_is_found(store: ReferenceStore, place: int) -> None:
    store.write(KEY, VALUES)
    content = bytearray(store.path(KEY).read_bytes())
    content[place] ^= 4
    store.path(KEY).write_bytes(content)
    assert store.read(KEY, 3) is None


def test_a_cut_entry_is_found(store: ReferenceStore) -> None:
    store.write(KEY, VALUES)
    os.truncate(store.path(KEY), 40)
    assert store.read(KEY, 3) is None


def test_an_entry_under_anothers_name_is_not_used(store: ReferenceStore) -> None:
    store.write(KEY, VALUES)
    store.path(OTHER).parent.mkdir()
    store.path(KEY).rename(store.path(OTHER))
    assert store.read(OTHER, 3) is None


def test_two_writers_at_once_leave_one_whole_entry(store: ReferenceStore) -> None:
    values = [float(number) for number in range(5000)]
    writers = [threading.Thread(target=store.write, args=(KEY, values)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert store.read(KEY, 5000) == values
    assert [path.name for path in store.path(KEY).parent.iterdir()] == [store.path(KEY).name]


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    told: list[str] = []
    store = ReferenceStore(tmp_path / "file" / "references", told.append)
    store.write(KEY, VALUES)
    store.write(OTHER, VALUES)
    assert told == ["The reference's log-probs cannot be stored for later runs: Not a directory"]
    assert store.read(KEY, 3) is None


def test_entries_are_removed_that_were_not_used_for_long(store: ReferenceStore) -> None:
    for key in (KEY, OTHER):
        store.write(key, VALUES)
        os.utime(store.path(key), (0, time.time() - 10 * 86400))
    assert store.read(KEY, 3) == VALUES  # used now
    assert store.remove_unused(9) == 1
    assert store.read(KEY, 3) == VALUES
    assert store.read(OTHER, 3) is None


RUN = {
    "model": {"path": "some/model"},
    "data": {"train": "rows.jsonl"},
    "method": {"type": "f_dpo"},
    "output_dir": "run",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"training": {"max_steps": 1, "batch_size": 8}}, False),
        ({"method": {"type": "simpo"}}, False),
        ({"lora": None}, False),  # the guard needs the model itself
        ({"lora": None, "collapse_guard": None}, True),
    ],
)
def test_a_store_pays_where_all_rows_are_read_and_nothing_else_needs_the_reference(
    changes: dict[str, object], expected: bool
) -> None:
    assert worth_storing(Recipe.parse(RUN | changes), rows=100) is expected
