"""Nobody else reads the home, also one that an older version left open."""

import stat
from pathlib import Path

import pytest

from alignkit_server.app import open_services
from alignkit_server.engine_settings import EngineSettings
from alignkit_server.settings import Settings


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("urls", "home"), [({}, 0o700), ({"tiny": "http://vllm:8000"}, 0o750)])
def test_a_home_that_was_open_is_closed_by_the_next_start(
    tmp_path: Path, urls: dict[str, str], home: int
) -> None:
    settings = Settings(home=tmp_path, engine=EngineSettings(urls=urls))
    with open_services(settings, None, lambda *_: None):
        pass
    private = ["alignkit.sqlite", "first-key", "secret-key", "files/file-result"]
    (tmp_path / "files" / "file-result").write_text("step,train_loss\n")
    (tmp_path / "dbos.sqlite").write_text("")
    for name in ("", *private, "dbos.sqlite"):
        (tmp_path / name).chmod(0o755)
    with open_services(settings, None, lambda *_: None):
        assert mode(tmp_path) == home
        assert {name: oct(mode(tmp_path / name)) for name in (*private, "dbos.sqlite")} == dict.fromkeys(
            (*private, "dbos.sqlite"), oct(0o600)
        )
        assert [mode(tmp_path / name) & 0o077 for name in ("files", "uploads", "jobs")] == [0, 0, 0]


def test_what_the_group_was_given_beside_stays(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(mode=0o755)
    with open_services(Settings(home=tmp_path), None, lambda *_: None):
        assert mode(tmp_path / "models") == 0o755
