"""The GPU engine of `pairwise_l1`: distances and sums of signs.

Both are like matmuls with another inner operation, and are computed like outer products. A program holds a
[BLOCK, BLOCK] tile of the result in registers and adds the share of one column or row at a time, without shared
memory. The order of summation is fixed, so that equal inputs give equal results.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alignkit.kernels.pairwise_l1.records import Engine

BLOCK = 64
DISTANCES_WARPS, SIGNS_WARPS = 8, 4
SHORTEST_SPLIT = 512
"""Minimum columns of the vocabulary for one program."""
MOST_PROGRAMS = 1024


@triton.jit
def distances_kernel(
    q_ptr, p_ptr, distances_ptr, mass_ptr, n, m, width, split, WANT_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute one split's share of D and R [splits, n, m] from q [width, n] and p [width, m]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(2)
    inner = q_ptr.dtype.element_ty
    distances = tl.zeros([BLOCK, BLOCK], dtype=inner)
    mass = tl.zeros([BLOCK, BLOCK], dtype=inner)
    q_ptr += part.to(tl.int64) * split * n
    p_ptr += part.to(tl.int64) * split * m
    for _ in range(tl.minimum(split, width - part * split)):
        q = tl.load(q_ptr + i, mask=i < n, other=0.0)[:, None]
        p = tl.load(p_ptr + j, mask=j < m, other=0.0)[None, :]
        q_ptr += n
        p_ptr += m
        distances += tl.abs(q - p)
        if WANT_MASS:
            mass += tl.where(q > p, q, tl.where(q < p, -q, 0.0))
    inside = (i < n)[:, None] & (j < m)[None, :]
    at = (part.to(tl.int64) * n + i[:, None]) * m + j[None, :]
    tl.store(distances_ptr + at, distances, mask=inside)
    if WANT_MASS:
        tl.store(mass_ptr + at, mass, mask=inside)


@triton.jit
def sign_sums_kernel(upstream_ptr, q_ptr, p_ptr, sums_ptr, n, m, width, BLOCK: tl.constexpr):
    """Compute sum_j upstream_ij sign(q_iv - p_jv) [n, width] from upstream [m, n], q [n, width] and p [m, width]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < n)[:, None] & (v < width)[None, :]
    at = i.to(tl.int64)[:, None] * width + v[None, :]
    q = tl.load(q_ptr + at, mask=inside, other=0.0)
    sums = tl.zeros([BLOCK, BLOCK], dtype=q_ptr.dtype.element_ty)
    for _ in range(m):
        p = tl.load(p_ptr + v, mask=v < width, other=0.0)[None, :]
        upstream = tl.load(upstream_ptr + i, mask=i < n, other=0.0)[:, None]
        p_ptr += width
        upstream_ptr += n
        sums += tl.where(q > p, upstream, tl.where(q < p, -upstream, 0.0))
    tl.store(sums_ptr + at, sums, mask=inside)


def sums(q: Tensor, p: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """See `Engine.sums`. The vocabulary is split over enough programs to fill the device."""
    (n, width), m = q.shape, p.size(0)
    tiles = triton.cdiv(n, BLOCK) * triton.cdiv(m, BLOCK)
    splits = max(1, min(triton.cdiv(width, SHORTEST_SPLIT), MOST_PROGRAMS // max(tiles, 1)))
    shares = {name: q.new_empty(splits, n, m) for name in names}
    if n * m:
        distances_kernel[triton.cdiv(n, BLOCK), triton.cdiv(m, BLOCK), splits](
            # transposed, so that a column is contiguous in memory
            q.T.contiguous(),
            p.T.contiguous(),
            shares["distance"],
            shares.get("mass"),
            n,
            m,
            width,
            triton.cdiv(width, splits),
            WANT_MASS="mass" in shares,
            BLOCK=BLOCK,
            num_warps=DISTANCES_WARPS,
        )
    return {name: share.sum(dim=0) for name, share in shares.items()}


def sign_sums(upstream: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """See `Engine.sign_sums`."""
    (n, width), m = q.shape, p.size(0)
    sums = torch.zeros_like(q)
    if sums.numel() and m:
        sign_sums_kernel[triton.cdiv(n, BLOCK), triton.cdiv(width, BLOCK)](
            upstream.T.contiguous(), q, p, sums, n, m, width, BLOCK=BLOCK, num_warps=SIGNS_WARPS
        )
    return sums


ENGINE = Engine(sums, sign_sums)
