"""The row kernels compile for every target without a GPU, and none spills registers into memory."""

import pytest

from alignkit.kernels.backend import interpreted
from alignkit.kernels.linear_logprob import triton as engine
from alignkit.kernels.linear_logprob.triton import BLOCK, WARPS
from tests.kernels.aot import TARGETS, compile_for

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton's interpreter replaces the compiler")
HEAD = {"vocabulary": "i32", "scale": "fp32", "softcap": "fp32", "temperature": "fp32"}


def pointers(**kinds: str) -> dict[str, str]:
    return {f"{name}_ptr": f"*{kind}" for name, kind in kinds.items()} | {"products_stride": "i32"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("everything", [False, True])
def test_statistics(target: str, dtype: str, everything: bool) -> None:
    outputs = dict.fromkeys(("picked", "lse", "logps", "entropy", "confidence"), "fp32")
    signature = pointers(products=dtype, bias=dtype, labels="i64", top1="i8", **outputs) | HEAD
    flags = dict.fromkeys(("HAS_BIAS", "HAS_SOFTCAP", "ENTROPY", "TOP1", "CONFIDENCE"), everything)
    found = compile_for(engine.statistics, signature, {**flags, "BLOCK": BLOCK}, target, num_warps=WARPS)
    assert found.spills == 0
    assert found.registers <= 128


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("everything", [False, True])
def test_to_gradient(target: str, dtype: str, everything: bool) -> None:
    signature = pointers(products=dtype, bias=dtype, labels="i64", lse="fp32", upstream="fp32") | HEAD
    flags = dict.fromkeys(("HAS_BIAS", "HAS_SOFTCAP", "HAS_UPSTREAM"), everything)
    found = compile_for(engine.to_gradient, signature, {**flags, "BLOCK": BLOCK}, target, num_warps=WARPS)
    assert found.spills == 0
    assert found.registers <= 128
