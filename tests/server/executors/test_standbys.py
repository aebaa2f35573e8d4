"""The local executor with trainers that wait for the next job; the interpreter is a stand-in."""

import json
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from alignkit_server.engines import process
from alignkit_server.engines.process import Identity
from alignkit_server.executors import oom, standbys
from alignkit_server.executors.local import LocalExecutor
from alignkit_server.executors.standbys import Standbys
from tests.server.engines.support import gone, wait_until

PROGRAM = """
import json, os, sys
if "alignkit.standby" in sys.argv:
    print("waits", flush=True)
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    request = json.loads(line)
    os.chdir(request["folder"])
    os.dup2(os.open(request["log"], os.O_WRONLY | os.O_CREAT), 1)
    os.environ.clear()
    os.environ.update(request["environment"])
    how, arguments = "warm", request["arguments"]
else:
    how, arguments = "cold", sys.argv[3:]
with open("ran.tmp", "w") as file:
    json.dump({"how": how, "pid": os.getpid(), "arguments": arguments, "environment": dict(os.environ)}, file)
os.rename("ran.tmp", "ran.json")
exec(open("script.py").read())
"""
SUCCEEDS = """open("result.json", "w").write('{"status": "succeeded"}')"""


class Service:
    """A home with models, jobs, and an executor whose trainers wait."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.python = home / "python"
        (home / "program.py").write_text(PROGRAM)
        self.python.write_text(f'#!/bin/sh\nexec {sys.executable} {home}/program.py "$@"\n')
        self.python.chmod(0o755)
        for name in ("small", "other"):
            (home / name).mkdir()
            (home / name / "model.safetensors").write_bytes(b"x" * 100)
        self.executor = self.server()

    def server(self) -> LocalExecutor:
        waiting = Standbys(self.home / "standbys", seconds=60, python=str(self.python))
        return LocalExecutor(grace_seconds=1, python=str(self.python), standbys=waiting)

    def job(self, name: str, model: str = "small", script: str = SUCCEEDS, **values: object) -> Path:
        folder = self.home / name
        folder.mkdir()
        given = {"path": str(self.home / model), "dtype": "float32", **values}
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": given}))
        (folder / "script.py").write_text(script)
        return folder

    def run(self, folder: Path) -> dict[str, object]:
        """Run the job to its end; what it said about itself."""
        self.executor.start(folder, resume=False)
        wait_until(lambda: not self.executor.running(folder))
        found: dict[str, object] = json.loads((folder / "ran.json").read_text())
        return found

    def waiting(self) -> list[Identity]:
        records = (self.home / "standbys").glob("*.json")
        return [found for record in records if (found := Identity.load(record))]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_the_next_job_on_a_model_is_trained_by_the_process_that_waits(service: Service) -> None:
    assert service.run(service.job("first"))["how"] == "cold"
    (waits,) = service.waiting()
    second = service.job("second")
    ran = service.run(second)
    assert (ran["how"], ran["pid"]) == ("warm", waits.pid)
    assert ran["arguments"] == [str(second / "recipe.yaml")]
    environment = ran["environment"]
    assert isinstance(environment, dict)
    assert environment["ALIGNKIT_PROCESS_TOKEN"] == waits.token
    assert [left.pid for left in service.waiting()] != [waits.pid]


def test_another_model_is_started_for_and_then_waits_instead(service: Service) -> None:
    service.run(service.job("first"))
    (before,) = service.waiting()
    assert service.run(service.job("second", "other"))["how"] == "cold"
    assert len(service.waiting()) == 1
    assert gone(before.pid)
    assert service.run(service.job("third", "other"))["how"] == "warm"


@pytest.mark.parametrize("values", [{"quantization": "nf4"}, {"dtype": "auto"}, {"path": "some/hub-id"}])
def test_what_cannot_be_loaded_ahead_has_no_standby(service: Service, values: dict[str, str]) -> None:
    service.run(service.job("first", **values))
    assert not service.waiting()


def test_none_waits_where_memory_is_short(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standbys, "ROOM", 1e12)
    service.run(service.job("first"))
    assert not service.waiting()


def test_none_waits_after_a_failure(service: Service) -> None:
    service.run(service.job("first", script="raise SystemExit(1)"))
    assert not service.waiting()


def test_a_standby_that_ended_is_not_missed(service: Service) -> None:
    service.run(service.job("first"))
    (waits,) = service.waiting()
    psutil.Process(waits.pid).kill()
    assert service.run(service.job("second"))["how"] == "cold"


def test_a_standby_that_does_not_answer_is_ended_and_not_missed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TAKING_SECONDS", 0.2)
    service.run(service.job("first"))
    (waits,) = service.waiting()
    psutil.Process(waits.pid).suspend()
    assert service.run(service.job("second"))["how"] == "cold"
    assert gone(waits.pid)


def test_a_run_from_a_standby_is_found_and_ended_by_the_next_server(service: Service) -> None:
    service.run(service.job("first"))
    long = service.job("second", script="import time; time.sleep(60)")
    service.executor.start(long, resume=False)
    wait_until((long / "ran.json").exists)
    ran = json.loads((long / "ran.json").read_text())
    assert ran["how"] == "warm"
    other = service.server()
    assert other.running(long)
    other.stop(long)
    wait_until(lambda: gone(ran["pid"]))
    assert not other.running(long)


def test_a_server_that_ended_while_it_handed_a_run_over_starts_it_anew(service: Service) -> None:
    """The run has then no process id on record, and whoever got its work is ended."""
    service.run(service.job("first"))
    job = service.job("second", script="import time; time.sleep(60)")
    service.executor.start(job, resume=False)
    wait_until((job / "ran.json").exists)
    first = Identity.load(job / "process.json")
    assert first is not None
    record = json.loads((job / "process.json").read_text()) | {"pid": 0, "create_time": 0.0}
    (job / "process.json").write_text(json.dumps(record))
    other = service.server()
    other.start(job, resume=False)
    again = Identity.load(job / "process.json")
    assert again is not None
    assert again.pid not in {0, first.pid}
    assert gone(first.pid)
    other.stop(job)


def test_what_an_earlier_server_left_waiting_is_ended(service: Service) -> None:
    service.run(service.job("first"))
    (waits,) = service.waiting()
    (record,) = (service.home / "standbys").glob("*.json")
    ownerless = json.loads(record.read_text()) | {"owner_pid": 1, "owner_create_time": 0.0}
    record.write_text(json.dumps(ownerless))
    service.server()
    wait_until(lambda: gone(waits.pid))
    assert not service.waiting()


def test_memory_is_what_the_control_group_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("memory.events", "oom_kill 0\n"),
        ("memory.max", "3000000\n"),
        ("memory.current", "2500000\n"),
        ("memory.stat", "anon 500000\nfile 2000000\n"),
    ):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(oom, "CGROUPS", tmp_path)
    assert oom.memory_left() == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert oom.memory_left() > 2_500_000
