"""Estimates read an op's `cost` module, so it imports nothing else, and not torch."""

import sys
from pathlib import Path
from runpy import run_path

import pytest

import alignkit.kernels

COSTS = sorted(Path(alignkit.kernels.__file__).parent.glob("*/cost.py"))


@pytest.mark.parametrize("path", COSTS, ids=lambda path: path.parent.name)
def test_a_cost_needs_no_torch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "triton", "alignkit"):
        monkeypatch.setitem(sys.modules, name, None)
    assert any(name.endswith("_BYTES") for name in run_path(str(path)))


def test_the_heads_have_one() -> None:
    assert {path.parent.name for path in COSTS} >= {"linear_divergence", "linear_logprob", "pairwise_l1"}
