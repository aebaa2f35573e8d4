"""The benchmarks run, and every contender of an op computes the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import heads
from benchmarks.ops import discover
from benchmarks.plot import series

OPS = discover()


def quick_run(*options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.heads", "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_quick_run_measures_every_op() -> None:
    printed = quick_run()
    for name in OPS:
        assert f"{name}, cpu, quick" in printed
    assert printed.count("alignkit") >= len(OPS)


SAME = {"trl": "materialised", "torch": "materialised", "alignkit": "materialised"}
"""What computes the same as what, but for the ops below. Liger's on a CPU computes another loss, and says so."""
SAME_OF = {
    "linear_divergence": {
        "trl": "materialised",
        "alignkit, jsd": "materialised",
        "alignkit": "materialised, both KLs",
    }
}


@pytest.mark.parametrize("op", OPS)
def test_contenders_that_compute_the_same_agree_and_inputs_repeat(op: str) -> None:
    module = OPS[op]

    def outcome(name: str) -> list[torch.Tensor]:
        tensors = module.inputs(module.SHAPES["quick"][0], "cpu")
        loss = module.CONTENDERS[name](**tensors)
        loss.backward()
        return [loss.detach(), *(t.grad for t in tensors.values() if t.grad is not None)]

    for name, base in SAME_OF.get(op, SAME).items():
        if name in module.CONTENDERS:
            for mine, exact in zip(outcome(name), outcome(base), strict=True):
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


def test_ops_that_are_measured_again_take_the_place_of_theirs() -> None:
    kept = [{"op": "a", "n": 1}, {"op": "b", "n": 1}, {"op": "b", "n": 2}, {"op": "c", "n": 1}]
    again = [{"op": "b", "n": 3}, {"op": "b", "n": 4}]
    assert heads.in_place(kept, again) == [kept[0], *again, kept[3]]
