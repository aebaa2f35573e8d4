"""Every fused op against materialised logits and its peers: `python -m benchmarks.heads`; see METHOD.md.

Prints one table an op, writes results/heads-DEVICE.json and, with --growth, docs/heads-DEVICE.png.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from alignkit.hardware import cpu_name
from benchmarks.measure import RUNS, in_fresh_process, measure, rates
from benchmarks.ops import Op, Shape, discover

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
MODULE = "benchmarks.heads"
GROWTH_RUNS = 2
GROWTH_CONTENDERS = ("materialised", "alignkit")
"""Enough to see how a curve bends: the peers' largest shapes would take half an hour, and 17 GB."""
console = Console()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--op", action="append", choices=list(discover()), help="only this one; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, to see that it works; writes nothing"
    )
    parser.add_argument(
        "--growth", action="store_true", help="instead over tokens and vocabulary, with a plot; fewer runs"
    )
    parser.add_argument(
        "--one", nargs=4, metavar=("OP", "CONTENDER", "SHAPE", "RUNS"), help=argparse.SUPPRESS
    )
    parser.add_argument("--rates", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one or options.rates:
        figures = (
            rates(options.device) if options.rates else measure_here(*options.one, device=options.device)
        )
        print(json.dumps(figures))
        return
    measure_all(options)


def measure_all(options: argparse.Namespace) -> None:
    """Every op that was asked for, on every shape, one fresh process a contender."""
    speed = in_fresh_process(MODULE, "--device", options.device, "--rates")
    rows = []
    kind = "quick" if options.quick else "growth" if options.growth else options.device
    for name, op in discover().items():
        shapes = op.SHAPES.get(kind, [])
        if not shapes or (options.op and name not in options.op):
            continue
        names, runs = (GROWTH_CONTENDERS, GROWTH_RUNS) if options.growth else (tuple(op.CONTENDERS), RUNS)
        found = [
            {"shape": shape, "floor_seconds": floor(op, shape, speed)}
            | {"figures": {name: measure_one(op, name, shape, options.device, runs) for name in names}}
            for shape in shapes
        ]
        console.print(table(f"{name}, {options.device}, {kind}", found))
        rows += [{"op": name, "kind": kind, **row} for row in found]
    if options.quick:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"heads-{options.device}{'-growth' if options.growth else ''}.json"
    if options.op and path.is_file():
        rows = in_place(json.loads(path.read_text())["rows"], rows)
    path.write_text(json.dumps({"machine": machine(options.device) | speed, "rows": rows}, indent=1) + "\n")
    console.print(f"Written to {path}")
    if options.growth:
        from benchmarks.plot import plot

        console.print(f"Drawn to {plot(rows, DOCS / f'heads-{options.device}.png')}")


def in_place(kept: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kept rows by op, with those of ops that were measured again in place of theirs."""
    again = {row["op"] for row in rows}
    others = [row for row in kept if row["op"] not in again]
    return sorted([*others, *rows], key=lambda row: str(row["op"]))


def machine(device: str) -> dict[str, Any]:
    """What the figures belong to."""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def measure_here(op_name: str, contender: str, shape: str, runs: str, *, device: str) -> dict[str, float]:
    """In the fresh process: one contender on one shape, forward and backward."""
    op = discover()[op_name]
    compute = op.CONTENDERS[contender]
    small = op.inputs(op.SHAPES["quick"][0], device)
    compute(**small).backward()  # imports and compilation are no part of the peak
    tensors = op.inputs(json.loads(shape), device)

    def step() -> None:
        for tensor in tensors.values():
            tensor.grad = None
        compute(**tensors).backward()

    return measure(step, device, int(runs))


def measure_one(op: Op, contender: str, shape: Shape, device: str, runs: int) -> dict[str, Any]:
    """In a fresh process."""
    name = op.__name__.rpartition(".")[2]
    return in_fresh_process(
        MODULE, "--device", device, "--one", name, contender, json.dumps(shape), str(runs)
    )


def floor(op: Op, shape: Shape, speed: dict[str, float]) -> float:
    """The seconds without which it cannot be done."""
    flops, moved = op.floor(shape)
    return max(flops / speed["flops_per_second"], moved / speed["bytes_per_second"])


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """One line a contender and shape: x is times the materialised logits', floor the share of it that is reached."""
    result = Table("shape", "contender", "seconds", "x", "floor", "peak MB", "x", title=title)
    for row in rows:
        base = row["figures"].get("materialised", {})
        for name, found in row["figures"].items():
            shape = " ".join(str(value) for value in row["shape"].values())
            if "error" in found:
                result.add_row(shape, name, found["error"])
                continue
            result.add_row(
                shape,
                name,
                f"{found['seconds']:.4f}",
                ratio(found["seconds"], base.get("seconds")),
                f"{row['floor_seconds'] / found['seconds']:.0%}",
                f"{found['peak_mb']:.0f}",
                ratio(found["peak_mb"], base.get("peak_mb")),
            )
    return result


def ratio(value: float, base: float | None) -> str:
    """Empty where there is nothing to compare with."""
    return f"{value / base:.2f}" if base else ""


if __name__ == "__main__":
    main()
