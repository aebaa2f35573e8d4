"""A model of GPU time that chooses the tokens per chunk and the splits of a long matmul. Does not import torch.

A matmul [m, n] = [m, k] [k, n] takes whole waves of output tiles over the multiprocessors, so a chunk that nearly
leaves the last wave empty pays for a full one. A matmul with few output tiles and a long k is split along k, and its
float32 parts are summed. This is the case for the hidden states' gradient, where k is the vocabulary. The rates are
those of an H200; only their ratios matter.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

TILE = 128
"""Rows of the smallest output tile; chunks are multiples of it."""
TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 192, 1.03), (192, 128, 1.03), (128, 128, 1.11))
"""(rows, columns, relative time of a flop) of cuBLAS's output tiles."""
PROLOGUE = 48
"""Cost of filling and emptying a tile's pipeline, as an addition to k."""
ROW_KERNEL_SHARE = 0.85
"""Share of the copy rate that a row kernel reaches."""
MOST_ROWS = 8192
"""Maximum rows of a chunk. More would gain nothing, and the limit keeps the search short."""
MOST_SPLITS = 16
PARTS_SHARE = 0.25
"""Maximum size of a split matmul's float32 parts, as a share of the buffer's bytes. They take additional memory."""
ALIGNMENT = 64
"""Buffer rows are padded to a multiple of this many columns, for wide loads and stores and aligned matmuls."""


class Device(NamedTuple):
    """The rates of a GPU that the model uses."""

    processors: int = 132
    """Number of multiprocessors."""
    flops: float = 790e12
    """Operations per second of a large 16-bit matmul."""
    bandwidth: float = 4.3e12
    """Bytes per second of a large copy."""


class Work(NamedTuple):
    """The matmuls and row kernels that a chunk of c tokens needs."""

    vocabulary: int
    logit_widths: tuple[int, ...]
    """H of each matmul that makes logits, [c, H] [H, V]."""
    state_widths: tuple[int, ...]
    """H of each matmul that makes hidden states' gradients, [c, V] [V, H]."""
    buffer_bytes: int
    """Bytes of all buffers per row and column."""
    moved_bytes: int
    """Bytes that row kernels read and write per row and column."""


class Chunks(NamedTuple):
    """The chosen chunk size and number of splits."""

    rows: int
    """Tokens per chunk."""
    splits: int
    """Parts into which k is split in matmuls that make hidden states' gradients."""
    seconds: float
    """Time of one chunk, according to the model."""

    def spans(self, count: int) -> Iterator[slice]:
        """Return slices of `rows` rows that cover [0, count). The last one may be shorter."""
        return (slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows))


def padded(vocabulary: int) -> int:
    """Return the number of columns of a buffer row: `vocabulary`, rounded up to ALIGNMENT."""
    return -(-vocabulary // ALIGNMENT) * ALIGNMENT


def product_seconds(m: int, n: int, k: int, splits: int, device: Device) -> float:
    """Estimate the time of a matmul [m, k] [k, n] with the best of TILES."""
    each = device.flops / device.processors

    def by(rows: int, columns: int, penalty: float) -> float:
        waves = math.ceil(math.ceil(m / rows) * math.ceil(n / columns) * splits / device.processors)
        return waves * 2 * rows * columns * (k / splits + PROLOGUE) / each * penalty

    return min(by(*tile) for tile in TILES)


def chunk_seconds(rows: int, splits: int, work: Work, device: Device) -> float:
    """Estimate the time of one chunk: its matmuls, the sums of split parts, and the row kernels."""
    total = sum(product_seconds(rows, work.vocabulary, width, 1, device) for width in work.logit_widths)
    for width in work.state_widths:
        total += product_seconds(rows, width, work.vocabulary, splits, device)
        if splits > 1:
            total += rows * width * 4 * (splits + 1) / device.bandwidth
    return total + rows * work.vocabulary * work.moved_bytes / (ROW_KERNEL_SHARE * device.bandwidth)


MEASURED: dict[tuple[Work, int], tuple[int, int]] = {}
"""(work, buffer bytes) -> (rows, splits) that `benchmarks/device.py` measured as better than the model's choice."""


@cache
def plan(work: Work, budget: int, device: Device = Device()) -> Chunks:  # noqa: B008 - immutable
    """Return the chunk size with the least time per token whose buffers take at most `budget` bytes.

    A chunk has at least one row, even if that exceeds the budget.
    """
    if (work, budget) in MEASURED:
        rows, splits = MEASURED[work, budget]
        return Chunks(rows, splits, chunk_seconds(rows, splits, work, device))
    fitting = min(MOST_ROWS, budget // (padded(work.vocabulary) * work.buffer_bytes))
    if fitting < TILE:
        return Chunks(max(1, fitting), 1, chunk_seconds(max(1, fitting), 1, work, device))
    widest = max(work.state_widths, default=0)
    candidates = [
        Chunks(rows, splits, chunk_seconds(rows, splits, work, device))
        for rows in range(TILE, fitting + 1, TILE)
        for splits in range(1, MOST_SPLITS + 1 if work.state_widths else 2)
        if splits == 1 or splits * rows * widest * 4 <= PARTS_SHARE * budget
    ]
    return min(candidates, key=lambda chunks: chunks.seconds / chunks.rows)
