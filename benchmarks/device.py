"""One run on a GPU, at most nine minutes: are the fused heads right there, and how far from the floor?

    python -m benchmarks.device --out FOLDER [--parts 0,1,4] [--seconds 540]

Runs from a bare copy of the repository with torch and Triton alone; peers and the whole step are taken where their
packages are installed. Each part is guarded, and FOLDER/part-N.json is written as its rows come, so that a failure or
a cut loses one part. Beside each time stands what `alignkit.kernels.gpu_plan` predicts from the two rates that part 0
measures; a miss of over 15% is marked and looked into before anything is tuned.

`--tiny` takes shapes that Triton's interpreter can do on a CPU (TRITON_INTERPRET=1), to test this file.
"""

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignkit.kernels.gpu_plan import Device

Row = dict[str, Any]
MISS = 0.15
WARM_UP, RUNS = 3, 10


@dataclass
class Bench:
    """What the parts share: where they run, the device's rates, the clock."""

    device: str
    tiny: bool
    deadline: float
    rates: Device = field(default_factory=Device)

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.deadline

    def seconds(self, step: Callable[[], object]) -> float:
        """Median of RUNS after WARM_UP, by events on a GPU."""
        runs, warm_up = (1, 0) if self.tiny else (RUNS, WARM_UP)
        return statistics.median([self._once(step) for _ in range(warm_up + runs)][warm_up:])

    def _once(self, step: Callable[[], object]) -> float:
        if self.device == "cpu":
            started = time.perf_counter()
            step()
            return time.perf_counter() - started
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1000

    def peak(self, step: Callable[[], object]) -> float:
        """MB over what was allocated before; 0 on a CPU."""
        if self.device == "cpu":
            step()
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def normal(self, *size: int, dtype: torch.dtype = torch.bfloat16, std: float = 1.0) -> torch.Tensor:
        """Random numbers, the same on every run."""
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(*size, generator=generator, device=self.device).mul_(std).to(dtype)


def timed(bench: Bench, name: str, step: Callable[[], object], predicted: float | None, **more: Any) -> Row:
    """A row: seconds, what was predicted, and whether that missed."""
    seconds = bench.seconds(step)
    row = {"name": name, "seconds": seconds, "predicted": predicted, **more}
    return row | ({"missed": abs(seconds / predicted - 1) > MISS} if predicted else {})


def about_the_device(bench: Bench) -> Iterator[Row]:
    """Part 0: the device, and its rates: a large product and a large copy."""
    size, length = (256, 2**18) if bench.tiny else (8192, 2**31)
    a, b = bench.normal(size, size), bench.normal(size, size)
    product = bench.seconds(lambda: a @ b)
    source = torch.zeros(length, device=bench.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = bench.seconds(lambda: target.copy_(source))
    processors = 4
    name = "cpu"
    if bench.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        processors, name = properties.multi_processor_count, properties.name
    bench.rates = Device(processors, 2 * size**3 / product, 4 * length / copy)
    yield {"name": name, "torch": torch.__version__, **bench.rates._asdict()}


def parts() -> dict[str, Callable[[Bench], Iterator[Row]]]:
    """Every part, by its number; imported when it is run, so that one that cannot be imported fails alone."""
    from benchmarks import device_heads as heads
    from benchmarks import device_step as step

    return {
        "0": about_the_device,
        "1": heads.correctness,
        "2": heads.products,
        "3": heads.row_kernels,
        "4": heads.log_probs,
        "5": heads.divergences,
        "6": step.large,
        "7": step.small,
    }


def run_part(bench: Bench, number: str, part: Callable[[Bench], Iterator[Row]], out: Path) -> bool:
    """Write the part's rows as they come; whether it ended without an error."""
    result: dict[str, Any] = {
        "part": number,
        "title": (part.__doc__ or "").strip().splitlines()[0],
        "rows": [],
    }
    path, started = out / f"part-{number}.json", time.monotonic()
    print(f"== {result['title']}", flush=True)
    try:
        for row in part(bench):
            result["rows"].append(row)
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(line(row), flush=True)
            if bench.late:
                result["cut"] = True
                break
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        print(traceback.format_exc(), flush=True)
    result["seconds"] = time.monotonic() - started
    path.write_text(json.dumps(result, indent=1) + "\n")
    return "error" not in result


def line(row: Row) -> str:
    """One row as printed: the prediction beside the time, with their ratio."""
    if "seconds" not in row:
        return "  ".join(f"{key} {value}" for key, value in row.items())
    text = f"{row['name']:60s} {row['seconds'] * 1e3:10.3f} ms"
    if row.get("predicted"):
        text += f"  predicted {row['predicted'] * 1e3:10.3f}  x {row['seconds'] / row['predicted']:.2f}"
        text += "  MISSED" * row["missed"]
    rest = {key: row[key] for key in row if key not in {"name", "seconds", "predicted", "missed"}}
    return text + "".join(
        f"  {key} {value:.3g}" if isinstance(value, float) else f"  {key} {value}"
        for key, value in rest.items()
    )


def main() -> None:
    """Run the parts in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for part-N.json")
    parser.add_argument("--parts", default="0,1,2,3,4,5,6,7", help="numbers, with commas")
    parser.add_argument("--seconds", type=float, default=540, help="no row begins later")
    parser.add_argument("--tiny", action="store_true", help="shapes for the interpreter, to test this file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("no GPU is at hand: this measures nothing on a CPU (--tiny only tests it)")
    bench = Bench(device, options.tiny, time.monotonic() + options.seconds)
    wanted, known = options.parts.split(","), parts()
    if "0" not in wanted:
        wanted = ["0", *wanted]  # the predictions are made of its rates
    good = [run_part(bench, number, known[number], options.out) for number in wanted if not bench.late]
    print(f"{sum(good)} of {len(wanted)} parts ran without an error")
    raise SystemExit(0 if all(good) and len(good) == len(wanted) else 1)


if __name__ == "__main__":
    main()
