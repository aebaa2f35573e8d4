"""`head.LogitTransform` for use inside Triton kernels."""

import os

# Must be set before Triton is imported. From 3.10 multiply-adds are fused only on request; unfused ones are slower
# and less precise.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
import triton.language as tl

SMALLEST: tl.constexpr = tl.constexpr(-8.5e37)
"""Replacement for -inf among tempered logits, which avoids 0 * -inf."""


@triton.jit
def load_logits(
    products_ptr, bias_ptr, at, inside, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Load (float32 logits before the temperature, soft cap's slope) at `at`; logits are -inf outside `inside`."""
    x = tl.load(products_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x *= scale
    slope = tl.full(x.shape, 1.0, tl.float32)
    if HAS_SOFTCAP:
        tanh = 2 * tl.sigmoid(2 * x / softcap) - 1
        slope = 1 - tanh * tanh
        x = softcap * tanh
    return tl.where(inside, x, -float("inf")), slope


@triton.jit
def temper(x, temperature):
    """Divide logits by the temperature and clamp them at SMALLEST; NaN stays NaN."""
    return tl.maximum(x / temperature, SMALLEST, propagate_nan=tl.PropagateNan.ALL)
