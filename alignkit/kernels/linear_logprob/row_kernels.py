"""GPU row kernels of `linear_logprob`, which compute statistics of logit rows and their gradient.

Rows are read up to a width that is a multiple of 16, so that loads and stores are 16 bytes wide for any vocabulary.
Columns beyond the vocabulary count as the smallest number. Logits and gradient may share memory.
"""

import triton
import triton.language as tl

from alignkit.kernels.head_triton import SMALLEST, load_logits, temper

NOWHERE: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def row_kernel(  # noqa: PLR0915 - one pass
    products_ptr,
    stride,
    gradient_ptr,
    gradient_stride,
    bias_ptr,
    labels_ptr,
    picked_ptr,
    lse_ptr,
    logps_ptr,
    entropy_ptr,
    top1_ptr,
    confidence_ptr,
    rows,
    vocabulary,
    width,
    scale,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    TOP1: tl.constexpr,
    CONFIDENCE: tl.constexpr,
    GRADIENT: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Compute label logit, logsumexp, log-prob, requested outputs and d logp / dz for this program's rows.

    Products are [rows, width]. Each of LANES lanes keeps its own maximum m and its sums of e = exp(x - m) and
    e (x - m); the lanes are combined once per row. The grid has only a few programs per processor, so that a row is
    still in the cache when it is read again for its gradient.
    """
    column = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    for r in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.zeros((), tl.int64) + r
        at_row = products_ptr + row * stride
        label = tl.load(labels_ptr + row)
        m = tl.full([LANES], SMALLEST, tl.float32)
        total = tl.zeros([LANES], tl.float32)
        weighted = tl.zeros([LANES], tl.float32)
        first = tl.full([LANES], NOWHERE, tl.int32)
        for start in range(0, width, LANES * VECTOR):
            at = start + column
            x, _ = load_logits(at_row, bias_ptr, at, at < width, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
            x = tl.where(at < vocabulary, temper(x, temperature), SMALLEST)
            if TOP1:
                high, where = tl.max(x, axis=1, return_indices=True)
                first = tl.where(high > m, start + tl.arange(0, LANES) * VECTOR + where, first)
            else:
                high = tl.max(x, axis=1)
            top = tl.maximum(m, high)
            shrink = tl.exp(m - top)
            distance = x - top[:, None]
            e = tl.exp(distance)
            if ENTROPY:
                # if all columns so far are masked, m - top is practically infinite and the sums are empty
                moved = tl.where(shrink > 0, shrink * (weighted + (m - top) * total), 0.0)
                weighted = moved + tl.sum(tl.where(e > 0, e * distance, 0.0), axis=1)
            total = shrink * total + tl.sum(e, axis=1)
            m = top
        largest = tl.max(m, axis=0)
        factor = tl.exp(m - largest)
        whole = tl.sum(factor * total, axis=0)
        log_total = tl.log(whole)
        inside = label < vocabulary
        picked, _ = load_logits(at_row, bias_ptr, label, inside, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        picked = temper(picked, temperature)
        tl.store(picked_ptr + row, picked)
        tl.store(lse_ptr + row, largest + log_total)
        tl.store(logps_ptr + row, (picked - largest) - log_total)
        if ENTROPY:
            moved = tl.where(factor > 0, factor * (weighted + (m - largest) * total), 0.0)
            tl.store(entropy_ptr + row, log_total - tl.sum(moved, axis=0) / whole)
        if TOP1:
            tl.store(top1_ptr + row, tl.min(tl.where(m == largest, first, NOWHERE), axis=0) == label)
        if CONFIDENCE:
            tl.store(confidence_ptr + row, tl.exp(-log_total))
        if GRADIENT:
            to_row = gradient_ptr + row * gradient_stride
            for start in range(0, width, LANES * VECTOR):
                at = start + column
                x, slope = load_logits(
                    at_row, bias_ptr, at, at < width, scale, softcap, HAS_BIAS, HAS_SOFTCAP
                )
                p = tl.exp((temper(x, temperature) - largest) - log_total)
                gradient = (tl.where(at == label, 1.0, 0.0) - p) * slope * (scale / temperature)
                gradient = tl.where(at < vocabulary, gradient, 0.0)
                # 16-bit gradients overwrite the first half of their row's float32 logits: this tile and earlier
                # ones. So all of the tile must have been read.
                tl.debug_barrier()
                tl.store(to_row + at, gradient.to(gradient_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def block_kernel(
    products_ptr,
    stride,
    gradient_ptr,
    gradient_stride,
    bias_ptr,
    labels_ptr,
    lse_ptr,
    upstream_ptr,
    first_column,
    columns,
    width,
    scale,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn products [rows, width] into upstream ([v = label] - p) slope scale / temperature, one row per program.

    The block has `columns` columns of the vocabulary, starting at `first_column`. The log-sum-exps are known.
    """
    row = tl.program_id(0).to(tl.int64)
    at_row, to_row = products_ptr + row * stride, gradient_ptr + row * gradient_stride
    label, lse = tl.load(labels_ptr + row) - first_column, tl.load(lse_ptr + row)
    factor = tl.load(upstream_ptr + row) * (scale / temperature)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x, slope = load_logits(at_row, bias_ptr, at, at < width, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        gradient = (tl.where(at == label, 1.0, 0.0) - tl.exp(temper(x, temperature) - lse)) * slope * factor
        gradient = tl.where(at < columns, gradient, 0.0)
        tl.debug_barrier()
        tl.store(to_row + at, gradient.to(gradient_ptr.dtype.element_ty), mask=at < width)
