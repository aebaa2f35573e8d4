"""One service for all tests of the command; every test is a project of its own, in a folder of its own."""

import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from alignkit.cli import main
from alignkit.cli import service as client_side
from tests.server.page.engine import talking
from tests.server.support import BASE_MODEL, TINY_CONFIG, Running, serve
from tests.tiny import build_tiny_tokenizer

_projects = itertools.count(1)


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What it printed with --json."""
        assert self.returncode == 0, self.stderr
        return json.loads(self.stdout)


Run = Callable[..., Done]


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with talking() as engine, serve(tmp_path_factory.mktemp("home"), engines=engine) as running:
        folder = running.settings.models_dir / BASE_MODEL
        build_tiny_tokenizer(folder)
        (folder / "config.json").write_text(TINY_CONFIG)
        yield running


@pytest.fixture
def project() -> str:
    return f"project-{next(_projects)}"


@pytest.fixture
def key(service: Running, project: str) -> str:
    return service.new_key(project)


@pytest.fixture
def client(service: Running, key: str) -> Iterator[OpenAI]:
    with service.client(key) as client:
        yield client


@pytest.fixture
def run(
    service: Running,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Run:
    """Runs `alignkit` in this process as in a pipe, with a key of the test's project, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("ALIGNKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("ALIGNKIT_HOME", str(service.settings.root))
    monkeypatch.setenv("ALIGNKIT_BASE_URL", f"{service.url}/v1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(client_side, "RETRIES", 0)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def alignkit(*arguments: str, key: str = key) -> Done:
        monkeypatch.setenv("ALIGNKIT_API_KEY", key)
        monkeypatch.setattr(sys, "argv", ["alignkit", *arguments])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ended:
            return Done(int(ended.code or 0), *capsys.readouterr())
        except Exception:
            traceback.print_exc()  # as the interpreter does
        return Done(1, *capsys.readouterr())

    return alignkit
