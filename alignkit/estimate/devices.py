"""Devices: a table (devices.yaml), and `cpu`, this machine, whose rates are measured."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import psutil
import torch
import yaml

from alignkit.errors import AlignkitError

CPU = "cpu"
CONTEXT_BYTES = 2**30
"""Assumption: bytes of a GPU used by the driver, libraries and collectives."""
FRAGMENTATION = {False: 1 / 3, True: 0.06}
"""Assumption: share of memory lost by the allocator, on a CPU (glibc's heap, as observed) and on a GPU."""
EFFICIENCY = {False: 0.6, True: 0.45}
"""Assumption: share of a large matrix product's rate that training reaches, on a CPU and on a GPU."""


class EstimateError(AlignkitError):
    """An estimate cannot be made; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Device:
    """The capacities of one device: bytes, and operations or bytes per second."""

    name: str
    memory: int
    bf16: float
    fp32: float
    memory_bandwidth: float
    link: float
    network: float
    per_node: int
    host: int
    """Bytes of main memory per device."""
    is_gpu: bool = True

    @property
    def usable(self) -> int:
        """Bytes available to training."""
        context = CONTEXT_BYTES if self.is_gpu else 0
        return int((self.memory - context) * (1 - FRAGMENTATION[self.is_gpu]))

    def rate(self, itemsize: int) -> float:
        """Operations per second that training reaches in matrix products with this itemsize in bytes."""
        return (self.bf16 if itemsize == 2 else self.fp32) * EFFICIENCY[self.is_gpu]


def names() -> tuple[str, ...]:
    """Names of all known devices."""
    return (CPU, *_table())


def get(name: str | Device) -> Device:
    """The device with that name, in any case. Raises EstimateError."""
    if isinstance(name, Device):
        return name
    found = name.lower()
    if found == CPU:
        return _this_machine()
    if found not in _table():
        raise EstimateError(f"device: expected one of {', '.join(names())}, found {name!r}")
    return _table()[found]


@cache
def _table() -> dict[str, Device]:
    values = yaml.safe_load(Path(__file__).with_name("devices.yaml").read_text(encoding="utf-8"))
    return {
        name: Device(
            name,
            memory=round(entry["memory"] * 2**30),
            bf16=entry["bf16"] * 1e12,
            fp32=entry["fp32"] * 1e12,
            memory_bandwidth=entry["memory_bandwidth"] * 1e9,
            link=entry["link"] * 1e9,
            network=entry["network"] * 1e9,
            per_node=entry["per_node"],
            host=round(entry["host"] * 2**30),
        )
        for name, entry in values.items()
    }


def at_hand() -> Device:
    """The first GPU of this machine with its memory, as named by nvidia-smi; without a GPU, the CPU.

    A GPU that is not in the table gets the rates of the slowest entry.
    """
    return _first_gpu() or _this_machine()


def _first_gpu() -> Device | None:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout
        name, memory = lines.splitlines()[0].rsplit(",", 1)
        size = int(memory) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return _closest(name, size)


def unmeasured() -> Device:
    """`at_hand`, but with nominal rates for a CPU: enough to know what fits, and nothing has to be run."""
    gpu = _first_gpu()
    return _cpu(rate=1e11, bandwidth=1e10) if gpu is None else gpu


def visible() -> Device:
    """The GPU that this process trains on, of several the one with the least memory; without one, the CPU.

    Unlike `at_hand` this sees what CUDA_VISIBLE_DEVICES leaves, and initialises CUDA.
    """
    if not torch.cuda.is_available():
        return unmeasured()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    least = min(found, key=lambda device: device.total_memory)
    return _closest(least.name, least.total_memory)


def _closest(name: str, memory: int) -> Device:
    """The table's entry whose name is part of `name`; among several, the one with the closest memory size."""
    words = name.lower().replace("-", " ").replace("geforce rtx ", "rtx").split()
    fitting = [device for key, device in _table().items() if key.split("-")[0] in words]
    slowest = min(_table().values(), key=lambda device: device.bf16)
    like = min(fitting, key=lambda device: abs(device.memory - memory), default=slowest)
    return replace(like, name=name.strip(), memory=memory)


@cache
def _this_machine() -> Device:
    """This machine's memory, and the measured rates of a large matrix product and a large copy on all cores."""
    size, copied = 1024, 2**26
    a, b = torch.randn(2, size, size)
    product = _fastest(lambda: torch.mm(a, b))
    source = torch.zeros(copied // 4)
    copy = _fastest(source.clone)
    rate, bandwidth = 2 * size**3 / product, 2 * copied / copy
    return _cpu(rate, bandwidth)


def _cpu(rate: float, bandwidth: float) -> Device:
    """This machine's CPU and memory at these rates: operations and bytes a second."""
    # 16-bit products are not reliably faster on CPUs; processes communicate through memory
    memory = psutil.virtual_memory().total
    return Device(
        CPU,
        memory=memory,
        bf16=rate,
        fp32=rate,
        memory_bandwidth=bandwidth,
        link=bandwidth / 4,
        network=bandwidth / 4,
        per_node=psutil.cpu_count(logical=True) or 1,
        host=memory,
        is_gpu=False,
    )


def _fastest(work: Callable[[], object], runs: int = 5) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
