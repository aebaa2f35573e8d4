"""Bytes that `linear_divergence` allows itself. Imports nothing, so that an estimate may read it anywhere."""

CPU_CHUNK_BYTES = 24 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20
"""One chunk's float32 logits. There are two at a time, and as much again for each gradient made at a time."""

CPU_BLOCK_BYTES = 2**20
"""One temporary of a block of rows on a CPU: the eight or so of a block stay in its cache."""


def chunk_bytes(*, gpu: bool) -> int:
    """Size of one chunk's float32 logits."""
    return GPU_CHUNK_BYTES if gpu else CPU_CHUNK_BYTES
