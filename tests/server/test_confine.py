"""A confined run or engine reads what it is given and nothing else of the home; where the system allows it."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from alignkit.errors import AlignkitError
from alignkit_server.confine import confined, possible
from alignkit_server.engines import manager
from alignkit_server.engines.command import EngineCommand
from alignkit_server.engines.manager import EngineManager
from alignkit_server.executors import local
from alignkit_server.executors.local import LocalExecutor, reads_of
from alignkit_server.executors.registry import executor_of
from alignkit_server.settings import Settings
from tests.server.support import wait_until

needs_namespaces = pytest.mark.skipif(not possible(), reason="this system gives no namespaces")
SCRIPT = """
import os, pathlib, sys
home = pathlib.Path(sys.argv[1])
print(sorted(path.name for path in home.rglob("*") if path.is_file()))
(home / "jobs" / "mine" / "out").write_text("written")
for name in ("files/mine", "jobs/theirs/secret", "first-key"):
    try:
        print(name, (home / name).read_text())
    except OSError as error:
        print(name, type(error).__name__)
print(os.getuid(), os.getcwd() == str(home / "jobs" / "mine"))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("files/mine", "files/theirs", "jobs/mine/recipe.yaml", "jobs/theirs/secret", "first-key"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    return tmp_path


@needs_namespaces
def test_a_run_sees_its_own_folder_and_what_it_reads(home: Path) -> None:
    reads = [home / "files" / "mine", home / "models" / "tiny", Path(sys.prefix)]
    command = confined(
        [sys.executable, "-c", SCRIPT, str(home)], home=home, writes=[home / "jobs" / "mine"], reads=reads
    )
    done = subprocess.run(command, cwd=home / "jobs" / "mine", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['config.json', 'mine', 'recipe.yaml']",
        "files/mine files/mine",
        "jobs/theirs/secret FileNotFoundError",
        "first-key FileNotFoundError",
        f"{os.getuid()} True",
    ]
    assert (home / "jobs" / "mine" / "out").read_text() == "written"
    assert (home / "first-key").read_text() == "first-key"


def test_it_reads_what_its_recipe_names(home: Path) -> None:
    recipe = home / "jobs" / "mine" / "recipe.yaml"
    recipe.write_text(f"model: {{path: {home}/models/tiny}}\ndata: {{train: {home}/files/mine}}\n")
    assert set(reads_of(recipe)) >= {home / "files" / "mine", home / "models" / "tiny"}


def test_a_system_that_cannot_confine_says_so_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "possible", lambda: False)
    with pytest.raises(AlignkitError, match="ALIGNKIT_CONFINE_TRAINING"):
        executor_of(Settings(home=tmp_path, confine_training=True))
    assert executor_of(Settings(home=tmp_path))
    monkeypatch.setattr(manager, "possible", lambda: False)
    with pytest.raises(AlignkitError, match="ALIGNKIT_ENGINE__CONFINE"):
        EngineManager(Settings(home=tmp_path, engine={"confine": True}))
    assert EngineManager(Settings(home=tmp_path))


@needs_namespaces
def test_a_confined_run_is_found_and_ended_like_any_other(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = tmp_path_factory.mktemp("bin") / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} script.py "$@"\n')
    program.chmod(0o755)
    folder = home / "jobs" / "mine"
    (folder / "recipe.yaml").write_text("{}")
    (folder / "script.py").write_text(
        "import os, time\n"
        f"open('seen.tmp', 'w').write(str(os.path.exists({str(home / 'first-key')!r})))\n"
        "os.rename('seen.tmp', 'seen'); time.sleep(60)\n"
    )
    first, other = (LocalExecutor(grace_seconds=5, python=str(program), confined_to=home) for _ in range(2))
    first.start(folder, resume=False)
    wait_until((folder / "seen").exists, 60)
    assert (folder / "seen").read_text() == "False"
    assert other.running(folder)
    other.stop(folder)
    assert not other.running(folder)


ENGINE = """
import json, pathlib, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
home, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        seen = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
        body = json.dumps({"data": [{"id": "tiny"}], "seen": seen}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@needs_namespaces
def test_a_confined_engine_sees_its_model_and_adapters_also_those_that_come_later(home: Path) -> None:
    adapters = home / "adapters" / "tiny"
    adapters.mkdir(parents=True)
    reads = [home / "models" / "tiny", adapters, Path(sys.prefix)]

    def command(settings: Settings, _: str, port: int, rank: int) -> EngineCommand:
        arguments = [sys.executable, "-S", "-c", ENGINE, str(home), str(port)]
        return EngineCommand(arguments, cwd=settings.models_dir, environment={}, reads=reads)

    engines = EngineManager(Settings(home=home, engine={"confine": True}), build_command=command)
    try:
        url = f"{engines.endpoint('tiny')}/v1/models"
        assert httpx.get(url).json()["seen"] == ["models/tiny/config.json"]
        (adapters / "later").write_text("published")
        assert httpx.get(url).json()["seen"] == ["adapters/tiny/later", "models/tiny/config.json"]
    finally:
        engines.shutdown()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@needs_namespaces
def test_a_confined_run_writes_its_projects_stores_and_sees_no_others(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = tmp_path_factory.mktemp("bin") / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} script.py "$@"\n')
    program.chmod(0o755)
    mine, theirs = (
        [home / store / name for store in ("references", "tokens")] for name in ("proj_a", "proj_b")
    )
    for store in theirs:
        store.mkdir(parents=True)
    folder = home / "jobs" / "mine"
    stores = f"training: {{reference_folder: {mine[0]}}}\ndata: {{token_folder: {mine[1]}}}"
    (folder / "recipe.yaml").write_text(stores)
    (folder / "script.py").write_text(
        "import os\n"
        f"for store in {list(map(str, mine))!r}: open(f'{{store}}/entry', 'w').write('kept')\n"
        f"seen = [os.path.exists(store) for store in {list(map(str, theirs))!r}]\n"
        "open('seen.tmp', 'w').write(str(seen))\n"
        "os.rename('seen.tmp', 'seen')\n"
    )
    executor = LocalExecutor(grace_seconds=5, python=str(program), confined_to=home)
    executor.start(folder, resume=False)
    wait_until((folder / "seen").exists, 60)
    executor.stop(folder)
    assert (folder / "seen").read_text() == "[False, False]"
    assert [(store / "entry").read_text() for store in mine] == ["kept", "kept"]
