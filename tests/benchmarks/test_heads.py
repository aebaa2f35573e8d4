"""The benchmarks run, and every contender of an op computes the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ops import discover
from benchmarks.plot import series

OPS = discover()


def test_quick_run_measures_every_op() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.heads", "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in OPS:
        assert f"{name}, cpu, quick" in done.stdout
    assert done.stdout.count("alignkit") >= len(OPS)


@pytest.mark.parametrize("op", OPS)
def test_contenders_that_compute_the_same_agree_and_inputs_repeat(op: str) -> None:
    """Liger's on a CPU computes another loss, and says so."""
    module = OPS[op]
    found = {}
    for name in {"materialised", "trl", "alignkit"} & set(module.CONTENDERS):
        tensors = module.inputs(module.SHAPES["quick"][0], "cpu")
        loss = module.CONTENDERS[name](**tensors)
        loss.backward()
        found[name] = [loss.detach()] + [t.grad for t in tensors.values() if t.requires_grad]
    for name, values in found.items():
        for mine, exact in zip(values, found["materialised"], strict=True):
            torch.testing.assert_close(
                mine, exact, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_a_plot_holds_the_other_sizes_fixed() -> None:
    def row(tokens: int, vocabulary: int, seconds: float) -> dict[str, object]:
        return {
            "op": "x",
            "kind": "growth",
            "shape": {"tokens": tokens, "vocabulary": vocabulary},
            "figures": {"a": {"seconds": seconds}, "b": {"error": "out of memory"}},
        }

    rows = [row(2, 10, 2.0), row(1, 10, 1.0), row(2, 20, 4.0), row(2, 30, 6.0)]
    assert series(rows, "x", "tokens", "seconds") == {"a": [(1, 1.0), (2, 2.0)]}
    assert series(rows, "x", "vocabulary", "seconds") == {"a": [(10, 2.0), (20, 4.0), (30, 6.0)]}


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="make bench installs it")
    from benchmarks.plot import plot

    rows = [
        {
            "op": "x",
            "kind": "growth",
            "shape": {"tokens": n, "vocabulary": 10},
            "figures": {"a": {"seconds": n, "peak_mb": n}},
        }
        for n in (1, 2)
    ]
    assert plot(rows, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
