"""`head.LogitTransform` inside Triton's kernels."""

import os

# Before Triton reads it: from 3.10 on multiply-adds are fused only on request, and unfused ones cost time and digits.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
import triton.language as tl

SMALLEST: tl.constexpr = tl.constexpr(-8.5e37)
"""Stands for -inf among tempered logits, so that 0 * -inf never arises."""


@triton.jit
def load_logits(
    products_ptr, bias_ptr, at, inside, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """float32 logits before the temperature at `at`, -inf where not `inside`; and the soft cap's slope."""
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
    """Logits over the temperature, none below SMALLEST; NaN stays NaN."""
    return tl.maximum(x / temperature, SMALLEST, propagate_nan=tl.PropagateNan.ALL)
