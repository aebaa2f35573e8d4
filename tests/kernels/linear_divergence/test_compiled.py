"""The row kernels of linear_divergence, compiled ahead of time for every target: none spills, all read 16 bytes."""

from typing import Any

import pytest

from alignkit.kernels.backend import interpreted
from alignkit.kernels.linear_divergence import triton as engine
from alignkit.kernels.linear_divergence.row_kernels import gradient_kernel, values_kernel
from tests.kernels.aot import TARGETS, compile_for, require_fit

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton's interpreter replaces the compiler")

ALIGNED = ("student_stride", "teacher_stride", "own_stride", "other_stride", "out_stride", "width")
TYPES = {
    **dict.fromkeys(("student_bias_ptr", "teacher_bias_ptr", "own_bias_ptr", "other_bias_ptr"), "*bf16"),
    **dict.fromkeys(("own_statistics_ptr", "other_statistics_ptr", "coefficients_ptr"), "*fp32"),
    **dict.fromkeys((*ALIGNED, "rows", "vocabulary"), "i32"),
    "labels_ptr": "*i64",
}


def compiled(kernel: Any, logits: str, out: str, target: str, flags: dict[str, Any], warps: int) -> Any:
    pointers = dict.fromkeys(("student_ptr", "teacher_ptr", "own_ptr", "other_ptr"), f"*{logits}")
    types = {name: (TYPES | pointers).get(name, "fp32") for name in kernel.arg_names} | {"out_ptr": out}
    return compile_for(kernel, types, flags, target, ALIGNED, num_warps=warps)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("logits", ["bf16", "fp32"])
@pytest.mark.parametrize("everything", [False, True])
def test_values_kernel(target: str, logits: str, everything: bool) -> None:
    flags: dict[str, Any] = {name: everything for name in values_kernel.arg_names if name.isupper()}
    flags |= {"STUDENT_BIAS": False, "TEACHER_BIAS": False}
    flags |= {"LANES": engine.LANES, "VECTOR": 8 if logits == "bf16" else 4}
    found = compiled(values_kernel, logits, "*fp32", target, flags, engine.VALUES_WARPS)
    require_fit(f"values_kernel {logits}{' everything' * everything}", target, found)
    assert found.wide_loads == (0 if target.startswith("gfx") else 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("everything", [False, True])
def test_gradient_kernel(target: str, everything: bool) -> None:
    flags: dict[str, Any] = {name: everything for name in gradient_kernel.arg_names if name.isupper()}
    flags |= {"TOWARD": True, "BLOCK": engine.GRADIENT_BLOCK}
    found = compiled(gradient_kernel, "fp32", "*bf16", target, flags, engine.GRADIENT_WARPS)
    require_fit(f"gradient_kernel{' everything' * everything}", target, found)
    assert found.wide_loads >= 2 or target.startswith("gfx")
