import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from alignkit_server.engines.process import Identity, ManagedProcess, child_environment
from tests.server.engines.support import gone, wait_until

SLEEP = "import time; time.sleep(600)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True)
print("child", child.pid, flush=True)
child.wait()
"""


class Starter:
    """Starts processes in a folder of the test and ends them with it."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "x.log"
        self.record = directory / "x.json"
        self.started: list[ManagedProcess] = []

    def __call__(self, code: str, *, nice: int = 0, **environment: str) -> ManagedProcess:
        process = ManagedProcess.start(
            [sys.executable, "-c", code],
            log_path=self.log,
            identity_path=self.record,
            environment=child_environment(environment),
            port=4711,
            nice=nice,
        )
        self.started.append(process)
        return process

    def attach(self) -> ManagedProcess:
        process = ManagedProcess.attach(self.record, log_path=self.log)
        assert process is not None
        return process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    for process in starter.started:
        process.terminate(0)


def wait_until_ended(process: ManagedProcess) -> None:
    wait_until(lambda: not process.alive())


def child_of(process: ManagedProcess) -> int:
    """The process id of PARENT's child, once it ignores SIGTERM."""
    wait_until(lambda: {line.split()[0] for line in process.last_lines(9)} == {"child", "deaf"})
    (line,) = (line for line in process.last_lines(9) if line.startswith("child"))
    return int(line.split()[1])


def test_a_child_and_what_it_starts_give_way_to_the_server(start: Starter) -> None:
    process = start(PARENT, nice=5)
    wait_until(lambda: "child" in start.log.read_text())
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        assert one.nice() == psutil.Process().nice() + 5


def test_terminate_ends_it_and_removes_the_record(start: Starter) -> None:
    process = start(SLEEP)
    assert process.alive()
    assert process.returncode is None
    process.terminate(10)
    assert not process.alive()
    assert process.returncode == -signal.SIGTERM
    assert not start.record.exists()


def test_terminate_kills_what_ignores_sigterm(start: Starter) -> None:
    process = start(STUBBORN)
    wait_until(lambda: process.last_lines(1) == ["deaf"])
    process.terminate(0.2)
    assert process.returncode == -signal.SIGKILL


def test_terminate_ends_children_in_other_sessions(start: Starter) -> None:
    process = start(PARENT)
    child = child_of(process)
    process.terminate(0.2)
    assert gone(child)


def test_children_are_found_after_their_parent_died(start: Starter) -> None:
    process = start(PARENT)
    child = child_of(process)
    os.kill(process.pid, signal.SIGKILL)
    wait_until_ended(process)
    assert not gone(child)
    start.attach().terminate(0.2)
    assert gone(child)


def test_an_exit_leaves_status_and_last_lines(start: Starter) -> None:
    process = start("import sys; print('one'); print(); print('two', file=sys.stderr); sys.exit(3)")
    wait_until_ended(process)
    assert process.returncode == 3
    assert set(process.last_lines(9)) == {"one", "two"}
    assert len(process.last_lines(1)) == 1


def test_the_log_of_the_last_run_is_kept_beside(start: Starter) -> None:
    for word in ("first", "second"):
        process = start(f"print({word!r})")
        wait_until_ended(process)
    assert process.last_lines(5) == ["second"]
    assert start.log.with_name("x.log.1").read_text() == "first\n"


def test_a_zombie_is_not_alive(start: Starter) -> None:
    process = start("pass")
    wait_until(
        lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    )  # nobody has reaped it yet
    assert not start.attach().alive()


def test_another_process_with_the_same_id_is_neither_alive_nor_ended(start: Starter) -> None:
    start(SLEEP).terminate(5)
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as stranger:
        recorded = Identity(
            "token", stranger.pid, psutil.Process(stranger.pid).create_time() - 60, None, 1, 0.0
        )
        recorded.save(start.record)
        attached = start.attach()
        assert not attached.alive()
        attached.terminate(0.2)
        assert stranger.poll() is None
        stranger.kill()


def test_attach_finds_the_process_again(start: Starter) -> None:
    process = start(SLEEP)
    attached = start.attach()
    assert (attached.pid, attached.port, attached.alive()) == (process.pid, 4711, True)
    attached.terminate(5)
    assert not process.alive()


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"pid": 1})])
def test_an_unreadable_record_is_no_process(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert ManagedProcess.attach(tmp_path / "x.json", log_path=tmp_path / "x.log") is None


def test_a_program_that_cannot_start_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ManagedProcess.start(
            [str(tmp_path / "missing")], log_path=tmp_path / "l", identity_path=tmp_path / "i", environment={}
        )
    assert not (tmp_path / "i").exists()


def test_no_secret_reaches_the_child(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "ALIGNKIT_DATABASE_URL",
        "HF_TOKEN",
        "OPENAI_API_KEY",
        "VLLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    process = start("import json, os; print(json.dumps(dict(os.environ)))", EXTRA="1")
    wait_until_ended(process)
    seen = json.loads(process.last_lines(1)[0])
    assert "secret" not in seen.values()
    assert (seen["EXTRA"], seen["VLLM_LOGGING_LEVEL"], seen["PATH"]) == ("1", "DEBUG", os.environ["PATH"])
