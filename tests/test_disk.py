"""Files and folders that appear whole: what is there before stays, unless it is to be replaced."""

import os
import stat
from pathlib import Path

import pytest

from alignkit.disk import put, staged_folder


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


def test_a_file_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    put(tmp_path / "file", b"old")
    put(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_file_that_cannot_be_kept_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        put(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_what_a_library_wrote_for_its_owner_alone_has_the_modes_of_the_umask(
    tmp_path: Path, mask: int, file_mode: int, folder_mode: int
) -> None:
    before = os.umask(mask)
    try:
        with staged_folder(tmp_path / "target") as folder:
            (folder / "inner").mkdir(mode=0o700)
            os.close(os.open(folder / "inner" / "model.safetensors", os.O_CREAT, 0o600))
            (folder / "link").symlink_to(tmp_path)
    finally:
        os.umask(before)
    inner = tmp_path / "target" / "inner"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (inner, inner.parent, inner / "model.safetensors")]
    assert modes == [folder_mode, folder_mode, file_mode]
