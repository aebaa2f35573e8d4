"""The row kernels compile for every target without a GPU: none spills, all read 16 bytes at a time."""

import pytest
import torch

from alignkit.kernels.backend import interpreted
from alignkit.kernels.linear_logprob import triton as engine
from alignkit.kernels.linear_logprob.records import OPTIONAL
from alignkit.kernels.linear_logprob.row_kernels import block_kernel, row_kernel
from tests.kernels.aot import TARGETS, compile_for, require_fit

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton's interpreter replaces the compiler")
NUMBERS = dict.fromkeys(("vocabulary", "rows", "columns", "first_column"), "i32") | dict.fromkeys(
    ("scale", "softcap", "temperature"), "fp32"
)
ALIGNED = ("stride", "gradient_stride", "width")
"""Multiples of 16, whatever the vocabulary."""
OUTPUTS = dict.fromkeys(("picked", "lse", "logps", "upstream"), "fp32") | {
    name: "i8" if dtype == torch.bool else "fp32" for name, dtype in OPTIONAL.items()
}


def signature(logits: str) -> dict[str, str]:
    kinds = {"products": logits, "gradient": "bf16", "bias": "bf16", "labels": "i64", **OUTPUTS}
    pointers = {f"{name}_ptr": f"*{kind}" for name, kind in kinds.items()}
    return pointers | NUMBERS | dict.fromkeys(ALIGNED, "i32")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("logits", ["bf16", "fp32"])
@pytest.mark.parametrize("everything", [False, True])
def test_row_kernel(target: str, logits: str, everything: bool) -> None:
    flags = dict.fromkeys(("HAS_SOFTCAP", *map(str.upper, OPTIONAL)), everything)
    shape = {"LANES": engine.LANES, "VECTOR": 8 if logits == "bf16" else 4}
    constants = {**flags, "HAS_BIAS": False, "GRADIENT": True, **shape}
    found = compile_for(row_kernel, signature(logits), constants, target, ALIGNED, num_warps=engine.WARPS)
    require_fit(f"row_kernel {logits}{' everything' * everything}", target, found)
    assert found.wide_loads == (0 if target.startswith("gfx") else 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("logits", ["bf16", "fp32"])
def test_block_kernel(target: str, logits: str) -> None:
    constants = {"HAS_BIAS": True, "HAS_SOFTCAP": True, "BLOCK": engine.BLOCK}
    found = compile_for(
        block_kernel, signature(logits), constants, target, ALIGNED, num_warps=engine.BLOCK_WARPS
    )
    require_fit(f"block_kernel {logits}", target, found)
    assert found.wide_loads >= 1 or target.startswith("gfx")
