"""Distillation heads: both KLs and both entropies of two models, or one JSD where a peer has no more.

Shapes, contenders and inputs, for `python -m benchmarks.linear_divergence [--quick]`. Forward and backward, float32,
on the CPU, both heads frozen, gradient to the student's hidden states. Every contender runs in a fresh process.
`jsd-…` contenders make one generalised JSD (beta 0.5), TRL's as its DistillationTrainer calls it; the others both KLs
and both entropies.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import in_fresh_process, report

RESULTS = Path(__file__).parent / "results" / "linear_divergence-cpu.json"
SHAPES = [{"tokens": tokens, "hidden": 576, "vocabulary": 49152} for tokens in (512, 2048)]
QUICK = [{"tokens": 64, "hidden": 32, "vocabulary": 1000}]
BASE = "jsd-trl"


class Operands(NamedTuple):
    """Of two models."""

    student_hidden: Tensor
    student_weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor


def make(shape: dict[str, Any]) -> Operands:
    """Random operands; the student's hidden states require gradient."""
    torch.manual_seed(0)
    tokens, hidden, vocabulary = shape["tokens"], shape["hidden"], shape["vocabulary"]
    return Operands(
        torch.randn(tokens, hidden, requires_grad=True),
        torch.randn(vocabulary, hidden) * 0.05,
        torch.randn(tokens, hidden),
        torch.randn(vocabulary, hidden) * 0.05,
    )


def materialised(x: Operands) -> Tensor:
    """Both KLs and entropies of all logits at once."""
    from alignkit.losses.bd_kd import bd_kd_loss

    return bd_kd_loss(
        x.student_hidden @ x.student_weight.T, x.teacher_hidden @ x.teacher_weight.T
    ).student.sum()


def alignkit(x: Operands) -> Tensor:
    """kernels.linear_divergence, a gradient for each KL."""
    from alignkit.kernels import linear_divergence
    from alignkit.losses.bd_kd import balance

    d = linear_divergence(*x)
    return balance(d.forward_kl, d.reverse_kl, d.student_entropy, d.teacher_entropy).student.sum()


def alignkit_objective(x: Operands) -> Tensor:
    """kernels.linear_divergence with the loss as its objective, one gradient."""
    from alignkit.kernels import Divergences, linear_divergence
    from alignkit.losses.bd_kd import balance

    def objective(d: Divergences) -> Tensor:
        return balance(d.forward_kl, d.reverse_kl, d.student_entropy, d.teacher_entropy).student

    return linear_divergence(*x, objective=objective).loss.sum()  # type: ignore[union-attr]


def jsd_materialised(x: Operands) -> Tensor:
    """The JSD of all logits at once."""
    q = (x.student_hidden @ x.student_weight.T).log_softmax(dim=1)
    p = (x.teacher_hidden @ x.teacher_weight.T).log_softmax(dim=1)
    middle = torch.logaddexp(q, p) - torch.tensor(2.0).log()
    kl = [torch.nn.functional.kl_div(middle, log, reduction="sum", log_target=True) for log in (q, p)]
    return (kl[0] + kl[1]) / 2


def jsd_alignkit(x: Operands) -> Tensor:
    """kernels.linear_divergence, the JSD alone with gradient."""
    from alignkit.kernels import linear_divergence

    return linear_divergence(*x, jsd_beta=0.5, gradients=("jsd",)).jsd.sum()  # type: ignore[union-attr]


def jsd_trl(x: Operands) -> Tensor:
    """TRL 1.16's chunked divergence."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _ = ChunkedDivergenceFunction.apply(
        x.student_hidden, x.student_weight, None, x.teacher_hidden, x.teacher_weight, None, 0.5
    )
    return divergence.sum()


def jsd_liger(x: Operands) -> Tensor:
    """Liger's chunked JSD, soft loss only; left out where liger_kernel is not installed."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
    labels = torch.zeros(x.student_hidden.size(0), dtype=torch.long)
    return loss(x.student_hidden, x.student_weight, x.teacher_hidden, x.teacher_weight, labels)


CONTENDERS: dict[str, Callable[[Operands], Tensor]] = {
    "materialised": materialised,
    "alignkit": alignkit,
    "alignkit-objective": alignkit_objective,
    "jsd-materialised": jsd_materialised,
    "jsd-trl": jsd_trl,
    "jsd-alignkit": jsd_alignkit,
}
try:
    import liger_kernel  # noqa: F401
except ImportError:
    pass
else:
    CONTENDERS["jsd-liger"] = jsd_liger


def measure_one(contender: str, shape: dict[str, Any]) -> None:
    """Runs in the fresh process."""
    run = CONTENDERS[contender]
    run(make({"tokens": 2, "hidden": 4, "vocabulary": 8}))  # its imports are no part of the peak
    operands = make(shape)

    def step() -> None:
        operands.student_hidden.grad = None
        run(operands).backward()  # type: ignore[no-untyped-call]

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
    rows = [
        {
            **shape,
            "figures": {n: in_fresh_process("benchmarks.linear_divergence", n, shape) for n in CONTENDERS},
        }
        for shape in (QUICK if options.quick else SHAPES)
    ]
    show(rows)
    if not options.quick:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        RESULTS.write_text(
            json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1)
        )
        Console().print(f"Written to {RESULTS.relative_to(Path.cwd())}")


def show(rows: list[dict[str, Any]]) -> None:
    """One line a contender and shape, with ratios to TRL's JSD."""
    table = Table(
        "tokens", "contender", "seconds", "x", "peak MB", "x", title="Two heads, float32, x of jsd-trl"
    )
    for row in rows:
        base = row["figures"][BASE]
        for name, found in row["figures"].items():
            table.add_row(
                str(row["tokens"]),
                name,
                f"{found['seconds']:.3f}",
                f"{found['seconds'] / base['seconds']:.2f}",
                f"{found['peak_mb']:.0f}",
                f"{found['peak_mb'] / max(base['peak_mb'], 0.1):.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
