"""Checkpoints that are there whole or not at all."""

from pathlib import Path

import pytest

from alignkit.run.checkpoints import ASIDE, FORMAT, MANIFEST, damage, seal
from alignkit.run.folder import RunFolder


def write(folder: Path, step: int, text: str = "weights") -> Path:
    """A sealed checkpoint of a few files."""
    written = folder / ASIDE / f"checkpoint-{step}"
    (written / "global_step").mkdir(parents=True)
    (written / "model.safetensors").write_text(text)
    (written / "global_step" / "shard.pt").write_text("optimizer")
    (written / "empty").write_text("")
    seal(written, folder / f"checkpoint-{step}", {})
    return folder / f"checkpoint-{step}"


def test_a_sealed_checkpoint_is_whole_and_nothing_is_left_aside(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    assert damage(path) is None
    assert not list((tmp_path / ASIDE).iterdir())


def test_sealing_again_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, 2)
    path = write(tmp_path, 2, "others")
    assert (path / "model.safetensors").read_text() == "others"
    assert damage(path) is None


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: flip(path / "global_step" / "shard.pt"), "other contents than when written"),
        (lambda path: (path / "model.safetensors").write_text("weigh"), "has 5 bytes, expected 7"),
        (lambda path: (path / "empty").unlink(), "empty is missing"),
        (lambda path: (path / MANIFEST).unlink(), "has no manifest.json"),
        (lambda path: (path / MANIFEST).write_text('{"files": {'), "manifest.json cannot be read"),
        (lambda path: (path / MANIFEST).write_text("[]"), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_one_is_skipped_and_told_of(tmp_path: Path, harm: object, words: str) -> None:
    folder = RunFolder(tmp_path)
    sound, newest = (write(folder.checkpoints, step) for step in (9, 10))
    (folder.checkpoints / ASIDE / "checkpoint-11").mkdir(parents=True)  # cut off while it was written
    assert callable(harm)
    harm(newest)
    told: list[str] = []
    assert folder.last_checkpoint(told.append) == sound
    assert len(told) == 1
    assert told[0].startswith("checkpoint-10 is damaged")
    assert words in told[0]


def test_one_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    (path / MANIFEST).write_text(f'{{"format": {FORMAT + 1}, "files": ["laid out", "otherwise"]}}')
    assert damage(path) is None


def test_where_none_is_whole_there_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.last_checkpoint() is None
    (write(folder.checkpoints, 1) / "empty").write_text("not")
    assert folder.last_checkpoint() is None
