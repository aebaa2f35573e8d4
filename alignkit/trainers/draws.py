"""Random draws that depend on a key alone, so that every process, micro-batch and resumed run repeats them."""

import hashlib
from typing import Any

import torch


def generator_of(key: str, device: Any = "cpu") -> torch.Generator:
    """A generator on `device` that is seeded by `key`, such as the run's seed, the step and a row."""
    # a CPU generator reads the low 32 bits of its seed alone
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
    return torch.Generator(device).manual_seed(seed)
