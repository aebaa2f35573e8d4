"""The hardware of this machine, detected without importing torch."""

import platform
import shutil
from contextlib import suppress
from pathlib import Path


def has_gpu() -> bool:
    """Whether an NVIDIA or AMD GPU is visible to this process."""
    return (
        Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi") is not None
    )


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices itself; without it such products are emulated and slow."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def cpu_name() -> str:
    """The processor's name as Linux knows it, or its architecture elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
