"""Helpers of engine and chat tests: a home, engines that are real processes, and waiting without long sleeps."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from alignkit_server.engines.command import EngineCommand
from alignkit_server.engines.manager import EngineManager
from alignkit_server.engines.ranks import engine_rank
from alignkit_server.settings import Settings

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


def make_settings(home: Path, *models: str) -> Settings:
    """Settings over an empty home with the named base models (a config.json each)."""
    settings = Settings(home=home, stop_grace_seconds=0.5)
    for name in models:
        folder = settings.models_dir / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return settings


class FakeEngines:
    """Builds the commands of fake engines and reads what they noted."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.notes_path = directory / "notes"
        self.flags = list(flags)
        self.ranks: list[int] = []
        """The largest LoRA rank of each engine; told to the manager where `limited`."""
        self.limited = False
        self.sleeps = False

    def __call__(self, settings: Settings, base_model: str, port: int, rank: int) -> EngineCommand:
        told = ["--port", str(port), "--model", base_model, "--notes", str(self.notes_path)]
        arguments = [sys.executable, "-S", str(FAKE_ENGINE), *told, *self.flags]
        self.ranks.append(engine_rank(rank, settings.engine.max_lora_rank))
        return EngineCommand(
            arguments,
            cwd=settings.root,
            environment={},
            rank=self.ranks[-1] if self.limited else None,
            sleeps=self.sleeps,
        )

    def notes(self, start: str = "") -> list[str]:
        """The noted lines that begin with `start`."""
        if not self.notes_path.exists():
            return []
        return [line for line in self.notes_path.read_text().splitlines() if line.startswith(start)]

    def pids(self) -> list[int]:
        """Every process the engines noted, children included."""
        return [int(line.split()[1]) for line in self.notes("started") + self.notes("child")]


def grants_no_lease(manager: EngineManager, model: str = "tiny") -> bool:
    """Whether the engine waits for its requests to end, or is not ready."""
    lease = manager.lease(model)
    if lease is not None:
        lease.end()
    return lease is None


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Return once `condition` holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the awaited condition did not come"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether no process with this id runs (a zombie does not run)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
