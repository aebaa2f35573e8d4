"""The GPU engine of `sinkhorn`: one launch, in which one program does all iterations of one problem.

A program reads the scores once per iteration, a few whole rows at a time. A row's potential needs only that row, and
the log-sum-exps of the columns are accumulated along the way. Iterations exchange only the potentials, and those of
the columns stay in registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from alignkit.kernels.sinkhorn.records import Engine

MOST_ROWS = 4096
TILE = 4096
"""Elements of a tile of whole rows."""
WARPS = 8


@triton.jit
def potentials_kernel(
    scores_ptr, f_ptr, g_ptr, problems, size, iterations, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Compute f [iterations, problems, size] and g [iterations + 1, problems, size] from [problems, size, size]."""
    problem = tl.program_id(0).to(tl.int64)
    scores_ptr += problem * size * size  # so that offsets within a problem are of 32 bits: half the registers
    inner = scores_ptr.dtype.element_ty
    column = tl.arange(0, COLUMNS)
    g = tl.zeros([COLUMNS], dtype=inner)
    for step in range(iterations):
        out = (step * problems + problem) * size
        largest = tl.full([COLUMNS], -1e30, dtype=inner)
        total = tl.zeros([COLUMNS], dtype=inner)
        for start in range(0, size, ROWS):
            row = start + tl.arange(0, ROWS)
            inside = (row < size)[:, None] & (column < size)[None, :]
            at = row[:, None] * size + column[None, :]
            # far below any score but finite, so that differences are never NaN
            scores = tl.load(scores_ptr + at, mask=inside, other=-1e30)
            by_columns = scores + g[None, :]
            top = tl.max(by_columns, axis=1)
            f = -top - tl.log(tl.sum(tl.exp(by_columns - top[:, None]), axis=1))
            f = tl.where(row < size, f, 0.0)
            tl.store(f_ptr + out + row, f, mask=row < size)
            by_rows = scores + f[:, None]
            higher = tl.maximum(largest, tl.max(by_rows, axis=0))
            total = total * tl.exp(largest - higher) + tl.sum(tl.exp(by_rows - higher[None, :]), axis=0)
            largest = higher
        g = tl.where(column < size, -largest - tl.log(total), 0.0)
        tl.store(g_ptr + out + problems * size + column, g, mask=column < size)


@triton.jit
def pull_back_kernel(
    scores_ptr,
    f_ptr,
    g_ptr,
    total_ptr,
    row_ptr,
    column_ptr,
    problems,
    size,
    iterations,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute the gradient to the scores in `total` [problems, size, size], which holds P dL/dP at the start.

    `row` and `column` hold the sums of `total` at the start.
    """
    problem = tl.program_id(0).to(tl.int64)
    scores_ptr += problem * size * size
    total_ptr += problem * size * size
    inner = scores_ptr.dtype.element_ty
    column = tl.arange(0, COLUMNS)
    grad_g = tl.load(column_ptr + problem * size + column, mask=column < size, other=0.0)
    for back in range(iterations):
        here = ((iterations - 1 - back) * problems + problem) * size
        g_before = tl.load(g_ptr + here + column, mask=column < size, other=0.0)
        g = tl.load(g_ptr + here + problems * size + column, mask=column < size, other=0.0)
        grad_g_before = tl.zeros([COLUMNS], dtype=inner)
        for start in range(0, size, ROWS):
            row = start + tl.arange(0, ROWS)
            inside = (row < size)[:, None] & (column < size)[None, :]
            at = row[:, None] * size + column[None, :]
            f = tl.load(f_ptr + here + row, mask=row < size, other=0.0)
            by_rows = tl.load(scores_ptr + at, mask=inside, other=-1e30) + f[:, None]
            share = tl.exp(by_rows + g[None, :]) * grad_g[None, :]
            grad_f = -tl.sum(share, axis=1)
            if back == 0:  # P depends on f_T directly, not only through g_T
                grad_f += tl.load(row_ptr + problem * size + row, mask=row < size, other=0.0)
            share_before = tl.exp(by_rows + g_before[None, :]) * grad_f[:, None]
            grad_g_before -= tl.sum(share_before, axis=0)
            total = tl.load(total_ptr + at, mask=inside, other=0.0)
            tl.store(total_ptr + at, total - share - share_before, mask=inside)
        grad_g = grad_g_before


def shape(size: int) -> dict[str, int]:
    """Return the launch sizes: a tile of as many whole rows as fit."""
    columns = max(64, triton.next_power_of_2(size))
    return {"ROWS": max(1, TILE // columns), "COLUMNS": columns, "num_warps": WARPS}


def potentials(scores: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """See `Engine.potentials`."""
    problems, size, _ = scores.shape
    if size > MOST_ROWS:
        raise ValueError(
            f"Triton's sinkhorn supports at most {MOST_ROWS} rows, found {size}; pass implementation='torch'"
        )
    f = scores.new_empty(iterations, problems, size)
    g = scores.new_zeros(iterations + 1, problems, size)
    potentials_kernel[problems,](scores, f, g, problems, size, iterations, **shape(size))
    return f, g


def pull_back(scores: Tensor, f: Tensor, g: Tensor, weighted: Tensor) -> Tensor:
    """See `Engine.pull_back`."""
    problems, size, _ = scores.shape
    total = weighted.clone()
    row, column = weighted.sum(dim=2), weighted.sum(dim=1)
    pull_back_kernel[problems,](scores, f, g, total, row, column, problems, size, len(f), **shape(size))
    return total


ENGINE = Engine(potentials, pull_back)
