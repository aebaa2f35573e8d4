"""The Triton kernels of linear_divergence, compiled ahead of time for every target: none spills."""

from typing import Any

import pytest

from alignkit.kernels.backend import interpreted
from alignkit.kernels.linear_divergence import triton as kernels
from tests.kernels.aot import TARGETS, compile_for

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton's interpreter replaces the compiler")

TYPES = {
    **dict.fromkeys(("student_ptr", "teacher_ptr", "own_ptr", "other_ptr"), "*fp32"),
    **dict.fromkeys(("student_bias_ptr", "teacher_bias_ptr", "own_bias_ptr", "other_bias_ptr"), "*bf16"),
    **dict.fromkeys(("own_statistics_ptr", "other_statistics_ptr", "coefficients_ptr"), "*fp32"),
    **dict.fromkeys(("stride", "out_stride", "rows", "vocabulary"), "i32"),
    "labels_ptr": "*i64",
}


def spills(kernel: Any, out: str, block: int, warps: int, target: str, *, everything: bool) -> int:
    types = {name: TYPES.get(name, "fp32") for name in kernel.arg_names} | {"out_ptr": out}
    flags = {name: everything for name in kernel.arg_names if name.isupper()} | {"BLOCK": block}
    found = compile_for(kernel, types, flags, target, num_warps=warps)
    assert found.registers > 0
    return found.spills


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("everything", [False, True])
def test_no_kernel_spills(target: str, everything: bool) -> None:
    values = (kernels.values_kernel, "*fp32", kernels.VALUES_BLOCK, kernels.VALUES_WARPS)
    gradient = (kernels.gradient_kernel, "*bf16", kernels.GRADIENT_BLOCK, kernels.GRADIENT_WARPS)
    for kernel in (values, gradient):
        assert spills(*kernel, target, everything=everything) == 0
