"""A folder that appears whole: what is there before stays, unless it is to be replaced."""

from pathlib import Path

import pytest

from alignkit.disk import staged_folder


def write(target: Path, text: str, *, replace: bool = False) -> None:
    with staged_folder(target, replace=replace) as folder:
        (folder / "file").write_text(text)


def test_a_folder_that_has_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(OSError, match="not empty"), staged_folder(target):
        write(target, "another's")
    assert (target / "file").read_text() == "another's"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, "old")
    write(target, "new", replace=True)
    assert (target / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, "old")
    with pytest.raises(RuntimeError), staged_folder(target, replace=True):
        raise RuntimeError
    assert (target / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
