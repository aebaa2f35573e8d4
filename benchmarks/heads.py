"""Logit heads against materialised logits and TRL's kernel: `python -m benchmarks.heads [--quick]`.

Forward and backward, float32, on the CPU. Every contender runs in a fresh process; the median of five runs after a
warm-up is kept, and the peak memory over the inputs'. Writes benchmarks/results/heads-cpu.json.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import in_fresh_process, report

RESULTS = Path(__file__).parent / "results" / "heads-cpu.json"
SHAPES = [
    {"tokens": tokens, "hidden": 576, "vocabulary": 49152, "head_trains": trains}
    for trains in (False, True)
    for tokens in (512, 2048)
]
QUICK = [{"tokens": 64, "hidden": 32, "vocabulary": 1000, "head_trains": False}]


def materialised(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits at once."""
    return (hidden @ weight.T).log_softmax(dim=-1).gather(1, labels[:, None]).sum()


def trl(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """TRL 1.16's chunked log-probs, as its fused head calls it."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    outputs = _ChunkedLogProbFunction.apply(
        hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",)
    )
    return outputs[0].sum()


def alignkit(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """kernels.linear_logprob."""
    from alignkit.kernels import linear_logprob

    return linear_logprob(hidden, weight, labels).logps.sum()


CONTENDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "materialised": materialised,
    "trl": trl,
    "alignkit": alignkit,
}


def measure_one(contender: str, shape: dict[str, Any]) -> None:
    """Runs in the fresh process."""
    torch.manual_seed(0)
    hidden = torch.randn(shape["tokens"], shape["hidden"], requires_grad=True)
    weight = (torch.randn(shape["vocabulary"], shape["hidden"]) * 0.05).requires_grad_(shape["head_trains"])
    labels = torch.randint(0, shape["vocabulary"], (shape["tokens"],))

    CONTENDERS[contender](
        hidden[:1, :4], weight[:2, :4], labels[:1] % 2
    )  # its imports are no part of the peak

    def step() -> None:
        hidden.grad = weight.grad = None
        CONTENDERS[contender](hidden, weight, labels).backward()  # type: ignore[no-untyped-call]

    report(step)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, to see that it works; writes nothing"
    )
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "SHAPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure_one(options.one[0], json.loads(options.one[1]))
        return
    rows = [measure_shape(shape) for shape in (QUICK if options.quick else SHAPES)]
    show(rows)
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        RESULTS.write_text(
            json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1)
        )
        Console().print(f"Written to {RESULTS.relative_to(Path.cwd())}")


def measure_shape(shape: dict[str, Any]) -> dict[str, Any]:
    """Every contender on one shape, one after the other."""
    figures = {name: in_fresh_process("benchmarks.heads", name, shape) for name in CONTENDERS}
    return {"op": "linear_logprob", **shape, "figures": figures}


def show(rows: list[dict[str, Any]]) -> None:
    """One line a contender and shape, with ratios to materialised logits."""
    table = Table(
        "op", "tokens", "head", "contender", "seconds", "x", "peak MB", "x", title="Logit heads, float32"
    )
    for row in rows:
        base = row["figures"]["materialised"]
        for name, found in row["figures"].items():
            table.add_row(
                row["op"],
                str(row["tokens"]),
                "trained" if row["head_trains"] else "frozen",
                name,
                f"{found['seconds']:.3f}",
                f"{found['seconds'] / base['seconds']:.2f}",
                f"{found['peak_mb']:.0f}",
                f"{found['peak_mb'] / max(base['peak_mb'], 0.1):.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
