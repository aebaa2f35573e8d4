"""Nobody else reads the home, also one that an older version left open."""

import stat
from pathlib import Path

import pytest

from alignkit_server.app import open_services
from alignkit_server.engine_settings import EngineSettings
from alignkit_server.settings import Settings

SHARED = {"models", "chat_templates", "adapters", "weights"}
"""The folders that an engine of another user reads, and the operator's own."""
NOTHING = {".reserve"}
"""A file of zeros."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(home: Path) -> set[str]:
    """What of the home's folders and files, and of their files, another user could read."""
    folders = [path for path in home.iterdir() if path.is_dir() and path.name not in SHARED]
    found = [*home.iterdir(), *(path for folder in folders for path in folder.iterdir() if path.is_file())]
    return {str(path.relative_to(home)) for path in found if mode(path) & 0o077} - SHARED - NOTHING


def all_folders(settings: Settings) -> list[Path]:
    """Every folder that the settings name."""
    names = [name for name in dir(Settings) if name.endswith("_dir")]
    return [getattr(settings, name) for name in names]


@pytest.mark.parametrize(("urls", "home"), [({}, 0o700), ({"tiny": "http://vllm:8000"}, 0o750)])
def test_a_home_that_was_open_is_closed_by_the_next_start(
    tmp_path: Path, urls: dict[str, str], home: int
) -> None:
    settings = Settings(home=tmp_path, engine=EngineSettings(urls=urls))
    with open_services(settings, None, lambda *_: None):
        assert open_to_others(tmp_path) == set()
    for folder in all_folders(settings):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    for name in ("dbos.sqlite", "dbos.sqlite-wal", "address", "files/file-result", "uploads/part"):
        (tmp_path / name).write_text("")
    for path in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_file())):
        path.chmod(0o755)
    assert {"tokens", "references", "standbys", "first-key", "files/file-result"} < open_to_others(tmp_path)
    with open_services(settings, None, lambda *_: None):
        assert open_to_others(tmp_path) == set()
        assert mode(tmp_path) == home


def test_folders_that_a_first_job_fills_are_closed_before_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, engine=EngineSettings(urls={"tiny": "http://vllm:8000"}))
    with open_services(settings, None, lambda *_: None):
        made = {
            folder.name for folder in all_folders(settings) if folder.exists() and mode(folder) & 0o077 == 0
        }
    assert {folder.name for folder in all_folders(settings)} - made == SHARED


def test_what_the_group_was_given_beside_stays(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(mode=0o755)
    with open_services(Settings(home=tmp_path), None, lambda *_: None):
        assert mode(tmp_path / "models") == 0o755


def test_a_program_in_the_home_can_still_be_run(tmp_path: Path) -> None:
    program = tmp_path / "train.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with open_services(Settings(home=tmp_path), None, lambda *_: None):
        assert mode(program) == 0o700
