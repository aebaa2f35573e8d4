"""What this machine has, told without importing torch."""

import shutil
from pathlib import Path


def has_gpu() -> bool:
    """Whether an NVIDIA or AMD GPU is visible to this process."""
    return (
        Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi") is not None
    )
