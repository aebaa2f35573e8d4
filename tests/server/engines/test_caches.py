"""What vLLM compiles is kept for the next start, apart for each model, and goes when it is not used."""

import os
from pathlib import Path

import pytest

from alignkit_server.engines import command
from alignkit_server.engines.command import vllm_command
from alignkit_server.settings import Settings
from alignkit_server.storage.engine_caches import sweep_caches
from tests.server.engines.support import make_settings

OWN = "ft:tiny:default:mine:a1b2c3d4"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(command, "runs_on_gpu", lambda: True)
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    settings = make_settings(tmp_path / "home", "tiny", "other")
    folder = settings.weights_dir / OWN.replace(":", "_")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return settings


def test_each_engine_on_a_gpu_compiles_into_a_folder_of_its_own(settings: Settings) -> None:
    folders = []
    for model in ("tiny", "other", OWN):
        built = vllm_command(settings, model, 4711)
        (folder,) = built.writes
        assert built.environment["VLLM_CACHE_ROOT"] == str(folder)
        assert folder.is_relative_to(settings.root)
        assert folder.stat().st_mode & 0o777 == 0o700
        folders.append(folder)
    assert len(set(folders)) == 3


def test_a_place_that_the_operator_names_is_left(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/var/cache/vllm")
    built = vllm_command(settings, "tiny", 4711)
    assert "VLLM_CACHE_ROOT" not in built.environment
    assert built.writes == []


def test_without_a_gpu_nothing_is_compiled_and_nothing_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "runs_on_gpu", lambda: False)
    assert "VLLM_CACHE_ROOT" not in vllm_command(settings, "tiny", 4711).environment


def fill(settings: Settings, name: str, age: int) -> Path:
    """A cache of 1,000 bytes of an engine that was started `age` seconds ago."""
    folder = settings.engine_caches_dir / name
    (folder / "torch_compile_cache").mkdir(parents=True)
    (folder / "torch_compile_cache" / "graph").write_bytes(b"x" * 1000)
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


def test_caches_of_deleted_models_go(settings: Settings) -> None:
    kept = [fill(settings, name, 0) for name in ("tiny", OWN.replace(":", "_"))]
    gone = fill(settings, "deleted", 0)
    sweep_caches(settings)
    assert all(folder.is_dir() for folder in kept)
    assert not gone.exists()


def test_beyond_the_limit_the_engines_not_started_for_longest_lose_theirs(settings: Settings) -> None:
    oldest, older, newest = (
        fill(settings, name, age) for name, age in (("tiny", 30), (OWN.replace(":", "_"), 20), ("other", 10))
    )
    settings.engine.cache_bytes = 2000
    settings.engines_dir.mkdir(parents=True)
    (settings.engines_dir / "tiny@4711.json").write_text("{}")
    sweep_caches(settings)
    assert [folder.exists() for folder in (oldest, older, newest)] == [True, False, True], (
        "tiny's engine runs"
    )
    (settings.engines_dir / "tiny@4711.json").unlink()
    settings.engine.cache_bytes = 1000
    sweep_caches(settings)
    assert [folder.exists() for folder in (oldest, newest)] == [False, True]
