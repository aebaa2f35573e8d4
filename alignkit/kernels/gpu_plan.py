"""How many tokens a GPU's chunk takes, and into how many parts a long product is split. Imports nothing of torch.

The model of a product [m, n] = [m, k] [k, n] is whole waves of output tiles over the multiprocessors: a chunk that
leaves the last wave nearly empty pays for a whole one. A product with few output tiles and a long k (the hidden
states' gradient, k the vocabulary) is split along k, whose float32 parts are then summed. The rates are an H200's;
only their proportions matter.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

TILE = 128
"""Rows of the smallest output tile; chunks are multiples of it."""
TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 192, 1.03), (192, 128, 1.03), (128, 128, 1.11))
"""(rows, columns, how much longer a flop takes) of cuBLAS's output tiles."""
PROLOGUE = 48
"""What filling and emptying a tile's pipeline costs, as so many more of k."""
ROW_KERNEL_SHARE = 0.85
"""Share of the copy rate that a row kernel reaches."""
MOST_ROWS = 8192
"""Rows of a chunk at most: more gain nothing, and the search stays short."""
MOST_SPLITS = 16
PARTS_SHARE = 0.25
"""The split product's float32 parts take at most this share of the buffer's bytes, beside it."""
ALIGNMENT = 64
"""Columns of a buffer's row are a multiple of this: wide loads and stores, and aligned products."""


class Device(NamedTuple):
    """What the model needs to know of a GPU."""

    processors: int = 132
    flops: float = 790e12
    """Per second, of a large 16-bit product."""
    bandwidth: float = 4.3e12
    """Bytes per second, of a large copy."""


class Work(NamedTuple):
    """What is done with one token's logits."""

    vocabulary: int
    logit_widths: tuple[int, ...]
    """Of products that make logits, [c, H] [H, V]: H of each."""
    state_widths: tuple[int, ...]
    """Of products that make hidden states' gradients, [c, V] [V, H]: H of each."""
    buffer_bytes: int
    """Bytes a row and column of all buffers."""
    moved_bytes: int
    """Bytes a row and column that row kernels read and write."""


class Chunks(NamedTuple):
    """A plan."""

    rows: int
    """Tokens of a chunk."""
    splits: int
    """Parts of a state product's k."""
    seconds: float
    """Of one chunk, by the model."""

    def spans(self, count: int) -> Iterator[slice]:
        """[0, count) in chunks of `rows`, the last one shorter."""
        return (slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows))


def padded(vocabulary: int) -> int:
    """Columns of a buffer's row."""
    return -(-vocabulary // ALIGNMENT) * ALIGNMENT


def product_seconds(m: int, n: int, k: int, splits: int, device: Device) -> float:
    """Of [m, k] [k, n], by the best of TILES."""
    each = device.flops / device.processors

    def by(rows: int, columns: int, penalty: float) -> float:
        waves = math.ceil(math.ceil(m / rows) * math.ceil(n / columns) * splits / device.processors)
        return waves * 2 * rows * columns * (k / splits + PROLOGUE) / each * penalty

    return min(by(*tile) for tile in TILES)


def chunk_seconds(rows: int, splits: int, work: Work, device: Device) -> float:
    """Of one chunk: its products, the sum of the parts, the row kernels."""
    total = sum(product_seconds(rows, work.vocabulary, width, 1, device) for width in work.logit_widths)
    for width in work.state_widths:
        total += product_seconds(rows, width, work.vocabulary, splits, device)
        if splits > 1:
            total += rows * width * 4 * (splits + 1) / device.bandwidth
    return total + rows * work.vocabulary * work.moved_bytes / (ROW_KERNEL_SHARE * device.bandwidth)


MEASURED: dict[tuple[Work, int], tuple[int, int]] = {}
"""(work, bytes) -> (rows, splits) that `benchmarks/device.py` found better than the model's, on a named device."""


@cache
def plan(work: Work, budget: int, device: Device = Device()) -> Chunks:  # noqa: B008 - immutable
    """The chunk of the least time a token whose buffers take at most `budget` bytes.

    At least one row, however wide: then the budget is passed over.
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
