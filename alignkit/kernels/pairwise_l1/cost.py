"""Bytes that `pairwise_l1` allows itself. Imports nothing, so that an estimate may read it anywhere."""

CPU_BLOCK_BYTES = 2**20
GPU_BLOCK_BYTES = 32 * 2**20
"""One block of probabilities of the larger side; on a CPU it is read once for every row, so it must stay cached."""
NARROWEST_BLOCK = 256
"""Columns of a block at least; with fewer, products become slow."""


def block_columns(rows: int, itemsize: int, *, gpu: bool) -> int:
    """Columns of one block of probabilities, `rows` those of the larger side."""
    return max(NARROWEST_BLOCK, (GPU_BLOCK_BYTES if gpu else CPU_BLOCK_BYTES) // (itemsize * max(rows, 1)))
