"""GPUs belong to runs: leases over an inventory that the test supplies, of runs that the test says live."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignkit_server.executors import leases as leasing
from alignkit_server.executors.leases import DeviceLeases, nvidia_gpus, visibility
from alignkit_server.executors.local import LocalExecutor
from alignkit_server.executors.protocol import ExecutorUnavailableError

EIGHT = [str(index) for index in range(8)]


class Machine:
    """GPUs and living runs, both changed by the test."""

    def __init__(self, folder: Path, gpus: list[str] = EIGHT) -> None:
        self.folder = folder
        self.gpus = list(gpus)
        self.living: set[Path] = set()

    def server(self, **options: object) -> DeviceLeases:
        """Leases as a server of the machine makes them when it starts."""
        return DeviceLeases(self.folder, lambda: self.gpus, self.living.__contains__, **options)  # type: ignore[arg-type]

    def start(self, server: DeviceLeases, name: str, count: int = 1) -> list[str]:
        """Start a run; the GPUs that it sees."""
        run = self.folder / name
        seen = server.take(run, count)["CUDA_VISIBLE_DEVICES"].split(",")
        self.living.add(run)
        server.started(run)
        return seen


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_eight_jobs_have_a_gpu_each_on_eight(machine: Machine) -> None:
    server = machine.server()
    seen = [machine.start(server, f"job-{n}") for n in range(8)]
    assert sorted(name for one in seen for name in one) == EIGHT
    with pytest.raises(ExecutorUnavailableError, match="expected 1, found 0 free of 8"):
        server.take(machine.folder / "ninth", 1)


def test_two_jobs_of_four_have_four_each(machine: Machine) -> None:
    server = machine.server()
    first, second = machine.start(server, "a", 4), machine.start(server, "b", 4)
    assert len(first) == len(second) == 4
    assert not set(first) & set(second)


def test_a_repeated_start_gives_the_same_gpus(machine: Machine) -> None:
    server = machine.server()
    assert machine.start(server, "a", 2) == machine.start(server, "a", 2)
    assert len(server.held()) == 1


def test_a_run_that_ended_gives_its_gpus_back(machine: Machine) -> None:
    server = machine.server()
    machine.start(server, "a", 8)
    server.release(machine.folder / "a")
    assert machine.start(server, "b", 8) == EIGHT


def test_leases_outlive_the_server(machine: Machine) -> None:
    seen = machine.start(machine.server(), "a", 3)
    again = machine.server()
    assert again.held() == {str(machine.folder / "a"): seen}
    assert not set(machine.start(again, "b", 5)) & set(seen)


def test_a_run_that_died_with_its_server_holds_nothing(machine: Machine) -> None:
    machine.start(machine.server(), "a", 8)
    machine.living.clear()
    assert machine.server().held() == {}


def _ended() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process


def test_a_server_killed_between_lease_and_start_holds_nothing(machine: Machine) -> None:
    server = machine.server()
    server.take(machine.folder / "a", 8)
    (file,) = machine.folder.glob("*/*.json")
    dead = json.loads(file.read_text(encoding="utf-8")) | {
        "owner_pid": _ended().pid,
        "owner_create_time": 1.0,
    }
    file.write_text(json.dumps(dead), encoding="utf-8")
    assert machine.server().held() == {}


def test_another_server_that_is_starting_a_run_keeps_its_lease(machine: Machine) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        server = machine.server()
        server.take(machine.folder / "a", 8)
        (file,) = machine.folder.glob("*/*.json")
        created = leasing.psutil.Process(other.pid).create_time()
        lease = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(
            json.dumps(lease | {"owner_pid": other.pid, "owner_create_time": created}), encoding="utf-8"
        )
        assert list(machine.server().held()) == [str(machine.folder / "a")]
        other.communicate(b"\n")


def test_a_damaged_lease_holds_nothing(machine: Machine) -> None:
    server = machine.server()
    machine.start(server, "a", 8)
    (file,) = machine.folder.glob("*/*.json")
    file.write_text("{", encoding="utf-8")
    assert server.held() == {}


def test_a_gpu_that_is_gone_is_not_leased(machine: Machine) -> None:
    server = machine.server()
    seen = machine.start(server, "a", 2)
    machine.gpus.remove(seen[0])
    assert seen[0] not in machine.start(server, "b", 6)
    machine.living.discard(machine.folder / "a")  # it died with its GPU, and starts again on others
    with pytest.raises(ExecutorUnavailableError, match="expected 2, found 1 free of 7"):
        server.take(machine.folder / "a", 2)


def test_engines_keep_the_gpus_that_are_theirs(machine: Machine) -> None:
    server = machine.server(reserved=["0", "1"])
    assert machine.start(server, "a", 6) == EIGHT[2:]


def test_a_process_sees_its_gpus_by_the_vendors_variable() -> None:
    assert visibility(["2", "5"]) == {"CUDA_VISIBLE_DEVICES": "2,5"}
    assert visibility(["2", "5"], amd=True) == {"ROCR_VISIBLE_DEVICES": "2,5", "HIP_VISIBLE_DEVICES": "0,1"}


def test_a_server_that_sees_some_gpus_leases_those_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert nvidia_gpus() == ["0", "1", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,9,GPU-abc")
    assert nvidia_gpus() == ["1", "3", "GPU-abc"]


def test_a_run_is_started_with_its_gpus_and_gives_them_back_when_it_ends(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" > seen\n')
    python.chmod(0o755)
    run = tmp_path / "job"
    run.mkdir()
    (run / "recipe.yaml").write_text("{training: {devices: 2, sharding: zero3}}")
    machine = Machine(tmp_path / "leases")
    made: list[DeviceLeases] = []

    def leases(alive: object) -> DeviceLeases:
        made.append(DeviceLeases(machine.folder, lambda: machine.gpus, alive))  # type: ignore[arg-type]
        return made[0]

    executor = LocalExecutor(grace_seconds=5, python=str(python), leases=leases)
    assert executor.devices() == 8
    executor.start(run, resume=False)
    deadline = time.monotonic() + 60
    while executor.running(run) and time.monotonic() < deadline:
        time.sleep(0.02)
    visible, _, command = (run / "seen").read_text().partition(" ")
    assert visible == "0,1"
    assert "--num_processes=2" in command
    assert "zero3.yaml" in command
    assert made[0].held() == {}
