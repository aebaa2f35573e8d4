"""Buffer sizes of `pairwise_l1` in bytes. Imports nothing, so that estimates can read it."""

CPU_BLOCK_BYTES = 2**20
GPU_BLOCK_BYTES = 32 * 2**20
"""One block of the larger side's probabilities. A CPU reads it once for every row, so it must fit in the cache
with two temporaries of the same size."""
NARROWEST_BLOCK = 256
"""Minimum columns of a block. With fewer, matmuls become slow."""

KEPT_BYTES = 2**24
"""The first pass of the forward keeps its logits for the second if those of both sides take no more than this."""


def keeps_logits(rows: int, vocabulary: int, itemsize: int) -> bool:
    """Return whether a forward keeps its logits from the first pass, if both sides have `rows` rows together."""
    return rows * vocabulary * itemsize <= KEPT_BYTES


def block_columns(rows: int, itemsize: int, *, gpu: bool) -> int:
    """Return the number of columns of a block of probabilities, if the larger side has `rows` rows."""
    # on a CPU up to 64 rows take half of the bytes, which was faster there; 128 and more were slower with half
    cpu = min(CPU_BLOCK_BYTES, max(CPU_BLOCK_BYTES // 2, rows * 2**13))
    return max(NARROWEST_BLOCK, (GPU_BLOCK_BYTES if gpu else cpu) // (itemsize * max(rows, 1)))
