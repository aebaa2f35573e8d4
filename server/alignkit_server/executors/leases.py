"""Leases of GPUs to runs, in files that survive the server, so that the next one finds them.

A lease holds while its run's process lives. A lease without a process, left by a dead server, is released.
"""

import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import psutil

from alignkit.disk import put
from alignkit_server.engines.process import runs
from alignkit_server.executors.protocol import ExecutorUnavailableError

Inventory = Callable[[], Sequence[str]]
"""Names of the GPUs that are there now, as the variable of `visibility` takes them."""
KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")


def nvidia_gpus() -> list[str]:
    """Indices of the NVIDIA GPUs that this server may use; empty without a driver."""
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return _allowed([line.strip() for line in lines.splitlines() if line.strip()], "CUDA_VISIBLE_DEVICES")


def amd_gpus() -> list[str]:
    """Indices of the AMD GPUs that this server may use; empty without a driver."""
    found = 0
    for node in KFD_NODES.glob("*/gpu_id"):
        try:
            found += node.read_text(encoding="utf-8").strip() not in {
                "",
                "0",
            }  # a CPU is a node without an id
        except OSError:
            continue
    return _allowed([str(index) for index in range(found)], "ROCR_VISIBLE_DEVICES")


def _allowed(found: list[str], variable: str) -> list[str]:
    """The devices that this server's environment variable `variable` allows; UUIDs are kept as they are."""
    given = os.environ.get(variable)
    if given is None or not found:
        return found
    names = [name.strip() for name in given.split(",") if name.strip()]
    return [name for name in names if name in found or not name.isdigit()]


def local_gpus() -> list[str]:
    """The GPUs of this machine."""
    return nvidia_gpus() or amd_gpus()


def visibility(devices: Sequence[str], *, amd: bool = False) -> dict[str, str]:
    """Environment variables that make only these GPUs visible to a process, numbered from 0."""
    names = ",".join(devices)
    if not amd:
        return {"CUDA_VISIBLE_DEVICES": names}
    # HIP's numbers count the devices that ROCR makes visible
    return {"ROCR_VISIBLE_DEVICES": names, "HIP_VISIBLE_DEVICES": ",".join(map(str, range(len(devices))))}


@dataclass(frozen=True, slots=True)
class Lease:
    """The GPUs of one run, and the server that leased them."""

    run: str
    devices: list[str]
    owner_pid: int
    owner_create_time: float


class DeviceLeases:
    """The leases of this machine, shared by its servers. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        inventory: Inventory,
        alive: Callable[[Path], bool],
        *,
        reserved: Sequence[str] = (),
        amd: bool = False,
    ) -> None:
        """`alive` returns whether a run's process lives. `reserved` devices belong to engines and are not leased."""
        self._folder = folder / socket.gethostname()
        self._inventory = inventory
        self._alive = alive
        self._reserved = frozenset(reserved)
        self._amd = amd
        self._starting: set[str] = set()

    def devices(self) -> list[str]:
        """The GPUs that can be leased to runs."""
        return [name for name in self._inventory() if name not in self._reserved]

    def take(self, run: Path, count: int) -> dict[str, str]:
        """Lease `count` GPUs to the run until `release`; returns the environment that makes only these visible.

        A repeated call returns the same GPUs while they exist. Raises ExecutorUnavailableError if too few are free.
        """
        key = str(run)
        with self._locked():
            present, held = self.devices(), self._held()
            own = held.pop(key, None)
            if own is not None and len(own) == count and set(own) <= set(present):
                chosen = own
            else:
                taken = {name for names in held.values() for name in names}
                free = [name for name in present if name not in taken]
                if len(free) < count:
                    raise ExecutorUnavailableError(
                        f"too few free GPUs: expected {count}, found {len(free)} free of {len(present)}"
                    )
                chosen = free[:count]
            self._starting.add(key)
            self._write(Lease(key, chosen, os.getpid(), psutil.Process().create_time()))
        return visibility(chosen, amd=self._amd)

    def started(self, run: Path) -> None:
        """Record that the run's process started, or failed to. From now on the lease depends on the process."""
        self._starting.discard(str(run))

    def release(self, run: Path) -> None:
        """Release the run's GPUs, if it has any."""
        self._starting.discard(str(run))
        self._file(str(run)).unlink(missing_ok=True)

    def held(self) -> dict[str, list[str]]:
        """Living run -> its GPUs."""
        with self._locked():
            return self._held()

    def _held(self) -> dict[str, list[str]]:
        """The valid leases; removes all others."""
        held = {}
        for file in self._folder.glob("*.json"):
            lease = _read(file)
            if lease is not None and self._stands(lease):
                held[lease.run] = lease.devices
            else:
                file.unlink(missing_ok=True)
        return held

    def _stands(self, lease: Lease) -> bool:
        if lease.run in self._starting or self._alive(Path(lease.run)):
            return True
        ours = lease.owner_pid == os.getpid()
        return not ours and runs(
            lease.owner_pid, lease.owner_create_time
        )  # another server may be starting it

    def _file(self, run: str) -> Path:
        return self._folder / f"{sha256(run.encode()).hexdigest()[:32]}.json"

    def _write(self, lease: Lease) -> None:
        put(self._file(lease.run), json.dumps(asdict(lease)).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read(file: Path) -> Lease | None:
    """The lease in `file`; None if it is missing or damaged."""
    try:
        return Lease(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
