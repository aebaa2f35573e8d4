"""The ahead-of-time compiler of the tests: it finds a spill, and finds none in a kernel without spills."""

import pytest
import triton
import triton.language as tl

from alignkit.kernels.backend import interpreted
from tests.kernels.aot import TARGETS, compile_for

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton's interpreter replaces the compiler")


@triton.jit
def double(x_ptr, size, BLOCK: tl.constexpr):
    """Read a block and write it doubled."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < size)
    tl.store(x_ptr + at, 2 * x, mask=at < size)


@pytest.mark.parametrize("target", TARGETS)
def test_a_small_kernel_does_not_spill(target: str) -> None:
    found = compile_for(double, {"x_ptr": "*fp32", "size": "i32"}, {"BLOCK": 1024}, target, num_warps=4)
    assert 0 < found.registers < 128
    assert found.spills == 0
    assert found.shared_bytes == 0


@triton.jit
def two_rows(x_ptr, BLOCK: tl.constexpr):
    """Hold two rows at once, to be read again after sums over both."""
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    y = tl.load(x_ptr + BLOCK + at)
    tl.debug_barrier()
    tl.store(x_ptr + at, tl.exp(x - tl.max(x)) / tl.sum(tl.exp(y)))
    tl.store(x_ptr + BLOCK + at, tl.exp(y - tl.max(y)) / tl.sum(tl.exp(x)))


TIGHT = {"gfx942": {"waves_per_eu": 8}}
"""What leaves a thread few registers, so that a small kernel spills."""


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_that_does_not_fit_is_seen_to_spill(target: str) -> None:
    tight = TIGHT.get(target, {"maxnreg": 32})
    assert compile_for(two_rows, {"x_ptr": "*fp32"}, {"BLOCK": 2048}, target, num_warps=1, **tight).spills > 0
