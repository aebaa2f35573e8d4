"""Row kernels over a buffer of products h W^T: statistics of each row, and its logits' gradient in place.

Every argument that is a float is a number of the head (`heads.Head`); logits below SMALLEST are set to it, as there.
"""

import triton
import triton.language as tl

SMALLEST: tl.constexpr = tl.constexpr(-8.5e37)


@triton.jit
def _logits(
    products_ptr,
    bias_ptr,
    columns,
    inside,
    scale,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """float32 logits of `columns` of one row, and the soft cap's slope."""
    x = tl.load(products_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x *= scale
    slope = tl.full(x.shape, 1.0, tl.float32)
    if HAS_SOFTCAP:
        t = 2 * tl.sigmoid(2 * x / softcap) - 1
        slope = 1 - t * t
        x = softcap * t
    x = tl.maximum(x / temperature, SMALLEST, propagate_nan=tl.PropagateNan.ALL)
    return x, slope


@triton.jit
def statistics(
    products_ptr,
    products_stride,
    bias_ptr,
    labels_ptr,
    picked_ptr,
    lse_ptr,
    logps_ptr,
    entropy_ptr,
    top1_ptr,
    vocabulary,
    scale,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    TOP1: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program, one sweep: the label's logit, logsumexp, log-prob, entropy, and whether the label leads.

    Sums are of e = exp(x - largest so far) and, for the entropy, of e (x - largest so far).
    """
    row = tl.program_id(0).to(tl.int64)
    products_ptr += row * products_stride
    label = tl.load(labels_ptr + row)
    largest = tl.full((), SMALLEST, tl.float32)
    before_label = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)
    picked = tl.full((), 0.0, tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x, _ = _logits(
            products_ptr, bias_ptr, columns, inside, scale, softcap, temperature, HAS_BIAS, HAS_SOFTCAP
        )
        picked += tl.sum(tl.where(columns == label, x, 0.0))
        if TOP1:
            before_label = tl.maximum(before_label, tl.max(tl.where(columns < label, x, float("-inf"))))
        rising = tl.maximum(largest, tl.max(tl.where(inside, x, SMALLEST)))
        shrink = tl.exp(largest - rising)
        distance = x - rising
        e = tl.where(inside, tl.exp(distance), 0.0)
        if ENTROPY:
            weighted = shrink * (weighted + (largest - rising) * total) + tl.sum(e * distance)
        total = shrink * total + tl.sum(e)
        largest = rising
    tl.store(picked_ptr + row, picked)
    tl.store(lse_ptr + row, largest + tl.log(total))
    tl.store(logps_ptr + row, (picked - largest) - tl.log(total))
    if ENTROPY:
        tl.store(entropy_ptr + row, tl.log(total) - weighted / total)
    if TOP1:
        tl.store(top1_ptr + row, (picked >= largest) & (picked > before_label))


@triton.jit
def to_gradient(
    products_ptr,
    products_stride,
    bias_ptr,
    labels_ptr,
    lse_ptr,
    upstream_ptr,
    vocabulary,
    scale,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row a program, in place: products to upstream ([v = label] - p) slope scale / temperature."""
    row = tl.program_id(0).to(tl.int64)
    products_ptr += row * products_stride
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    x, slope = _logits(
        products_ptr, bias_ptr, columns, inside, scale, softcap, temperature, HAS_BIAS, HAS_SOFTCAP
    )
    gradient = tl.where(columns == tl.load(labels_ptr + row), 1.0, 0.0) - tl.exp(x - tl.load(lse_ptr + row))
    gradient *= slope * (scale / temperature)
    if HAS_UPSTREAM:
        gradient *= tl.load(upstream_ptr + row)
    tl.store(products_ptr + columns, gradient.to(products_ptr.dtype.element_ty), mask=inside)
