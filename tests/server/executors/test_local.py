"""The local executor on real processes: idempotent, found again by another server, ended whole."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from alignkit.run.folder import RunFolder
from alignkit_server.engines.process import Identity
from alignkit_server.executors.local import LocalExecutor
from alignkit_server.runner.memory import was_killed

DEADLINE = 20.0


@pytest.fixture
def fake_python(tmp_path: Path) -> str:
    """Stands in for the interpreter: runs the job folder's `script.py` instead of accelerate."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} script.py "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "job"
    path.mkdir()
    (path / "recipe.yaml").write_text("{}")
    return path


def executor(fake_python: str) -> LocalExecutor:
    return LocalExecutor(grace_seconds=5, python=fake_python)


def until(condition: object, seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_a_run_ends_by_itself_with_its_log_kept(folder: Path, fake_python: str) -> None:
    (folder / "script.py").write_text("import sys; print('hello', sys.argv[-1])")
    local = executor(fake_python)
    local.start(folder, resume=False)
    until(lambda: not local.running(folder))
    assert (folder / "train.log").read_text() == f"hello {folder / 'recipe.yaml'}\n"


def test_starting_twice_starts_one(folder: Path, fake_python: str) -> None:
    (folder / "script.py").write_text("import time; open('starts', 'a').write('x'); time.sleep(60)")
    local = executor(fake_python)
    local.start(folder, resume=False)
    until((folder / "starts").exists)
    local.start(folder, resume=False)
    executor(fake_python).start(folder, resume=False)  # the next server
    time.sleep(0.3)
    assert (folder / "starts").read_text() == "x"
    local.stop(folder)


def test_another_server_finds_the_run_and_ends_all_of_it(folder: Path, fake_python: str) -> None:
    (folder / "script.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('child.tmp', 'w').write(str(child.pid)); import os; os.rename('child.tmp', 'child')\n"
        "time.sleep(60)\n"
    )
    executor(fake_python).start(folder, resume=False)
    until((folder / "child").exists)
    child = psutil.Process(int((folder / "child").read_text()))
    other = executor(fake_python)
    assert other.running(folder)
    other.stop(folder)
    assert not other.running(folder)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_killed_run_takes_its_orphans_along(folder: Path, fake_python: str) -> None:
    (folder / "script.py").write_text(
        "import subprocess, sys, time, os\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('child.tmp', 'w').write(str(child.pid)); os.rename('child.tmp', 'child')\n"
        "time.sleep(60)\n"
    )
    local = executor(fake_python)
    local.start(folder, resume=False)
    until((folder / "child").exists)
    child = psutil.Process(int((folder / "child").read_text()))
    identity = Identity.load(folder / "process.json")
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)
    until(lambda: not local.running(folder))
    assert was_killed(RunFolder(folder))
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("import os; os._exit(137)", "was ended by SIGKILL"),
        ("import os; os._exit(3)", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 11)", "ended with status -11"),
        ("open('result.json', 'w').write('{}'); import os; os._exit(3)", None),
    ],
)
def test_the_log_says_how_a_run_without_a_result_ended(
    folder: Path, fake_python: str, script: str, said: str | None
) -> None:
    (folder / "script.py").write_text(script)
    local = executor(fake_python)
    local.start(folder, resume=False)
    until(lambda: not local.running(folder))
    assert (folder / "train.log").read_text() == (f"The training process {said}\n" if said else "")


def test_only_a_run_with_a_tracker_sees_that_trackers_credentials(
    folder: Path, fake_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"the value of {name}")
    (folder / "script.py").write_text("import json, os; json.dump(dict(os.environ), open('seen', 'w'))")

    def seen(recipe: str) -> set[str]:
        (folder / "recipe.yaml").write_text(recipe)
        local = executor(fake_python)
        local.start(folder, resume=False)
        until(lambda: not local.running(folder))
        found = json.loads((folder / "seen").read_text())
        return {name for name, value in found.items() if value == f"the value of {name}"}

    assert seen("training: {}") == set()
    assert seen("training: {report_to: [{type: tensorboard}]}") == set()
    assert seen("training: {report_to: [{type: wandb, project: p}]}") == {"WANDB_API_KEY"}


def test_what_never_started_is_not_running(folder: Path, fake_python: str) -> None:
    assert not executor(fake_python).running(folder)
    executor(fake_python).stop(folder)
