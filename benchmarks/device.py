"""One run on a GPU, at most nine minutes: are the fused heads right there, and how far from the floor?

    python -m benchmarks.device --out FOLDER [--parts 0,1,4] [--seconds 540]

Runs from a bare copy of the repository with torch and Triton alone; peers and the whole step are taken where their
packages are installed. Each part is a process of its own with a limit of time, since after a kernel's fault a process
cannot use its GPU any more; FOLDER/part-N.json is written as its rows come. So a failure, a hang or a cut loses one
part, and a shape that does not fit loses one row. Beside each time stands what `alignkit.kernels.gpu_plan` predicts
from the two rates that part 0 measures; a miss of over 15% is marked and looked into before anything is tuned.

`--tiny` takes shapes that Triton's interpreter can do on a CPU (TRITON_INTERPRET=1), to test this file. `--here` runs
all parts in this process.
"""

import argparse
import json
import statistics
import subprocess
import sys
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
FEWEST_RUNS, RUNS = 3, 10
TIMED_SECONDS = 1.5
"""After this much, a slow contender has RUNS no more, but FEWEST_RUNS at the least."""
SPIN_SECONDS = 0.5
"""Products before the first measurement: an idle GPU's clock is low."""
LIMITS = {"0": 60, "1": 160, "2": 60, "3": 80, "4": 120, "5": 130, "6": 120, "7": 60}
"""Part -> seconds after which it begins no row; with GRACE more its process is stopped."""
GRACE = 20


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
        """Median of up to RUNS, by events on a GPU. The first run, which compiles, and the second do not count."""
        if self.tiny:
            return self._once(step)
        self._once(step)
        runs = min(RUNS, max(FEWEST_RUNS, int(TIMED_SECONDS / max(self._once(step), 1e-6))))
        return statistics.median([self._once(step) for _ in range(runs)])

    def spin(self) -> None:
        """Keep a GPU busy until its clock has risen."""
        if self.device == "cpu" or self.tiny:
            return
        a, end = self.normal(4096, 4096), time.monotonic() + SPIN_SECONDS
        while time.monotonic() < end:
            for _ in range(10):
                a @ a
            torch.cuda.synchronize()

    def settle(self) -> None:
        """Give back freed memory. Raises RuntimeError if a kernel's fault has ended this process's use of the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

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


def guarded(bench: Bench, name: str, make: Callable[[], Row], *, ours: bool = True) -> Row:
    """Return the row that `make` computes, or why there is none: an error of ours, or a peer that is skipped.

    Raises RuntimeError if the GPU cannot be used any more, which ends the part.
    """
    try:
        return make()
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
    bench.settle()  # after the error and the tensors that it held are gone
    return {"name": name, "error" if ours else "skipped": reason}


def about_the_device(bench: Bench) -> Iterator[Row]:
    """Part 0: the device, and its rates: a large product and a large copy."""
    size, length = (256, 2**18) if bench.tiny else (8192, 2**31)
    bench.spin()
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
    about = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": _driver()}
    yield {"name": name, **about, **bench.rates._asdict()}


def _driver() -> str:
    """The driver's version, clocks, power limit and temperature, as `nvidia-smi` has them; empty without it."""
    asked = "driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def known_rates(out: Path) -> Device | None:
    """Return the rates that an earlier process measured on this device; None if there was none."""
    path = out / "part-0.json"
    if not path.exists():
        return None
    rows = json.loads(path.read_text())["rows"]
    name = torch.cuda.get_device_properties(0).name if torch.cuda.is_available() else "cpu"
    if not rows or rows[0]["name"] != name:
        return None
    return Device(*(rows[0][field] for field in Device._fields))


def parts() -> dict[str, Callable[[Bench], Iterator[Row]]]:
    """Every part, by its number."""
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


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a part's result whole: a process that is stopped meanwhile leaves the last one."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    draft.replace(path)


def run_part(bench: Bench, number: str, part: Callable[[Bench], Iterator[Row]], out: Path) -> bool:
    """Write the part's rows as they come; whether it ended without an error and every value was right."""
    result: dict[str, Any] = {
        "part": number,
        "title": (part.__doc__ or "").strip().splitlines()[0],
        "rows": [],
    }
    path, started = out / f"part-{number}.json", time.monotonic()
    write(path, result)
    print(f"== {result['title']}", flush=True)
    try:
        for row in part(bench):
            result["rows"].append(row)
            write(path, result)
            print(line(row), flush=True)
            if bench.late:
                result["cut"] = True
                print("cut: the time is up", flush=True)
                break
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        print(traceback.format_exc(), flush=True)
    result["seconds"] = time.monotonic() - started
    write(path, result)
    return "error" not in result and all(
        "error" not in row and row.get("right", True) for row in result["rows"]
    )


def in_this_process(out: Path, wanted: list[str], seconds: float, *, tiny: bool) -> list[str]:
    """Run the parts in turn; return those that failed, or that there was no time for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, tiny, time.monotonic() + seconds)
    known = parts()
    if "0" not in wanted:
        rates = known_rates(out)
        wanted = wanted if rates else ["0", *wanted]
        bench.rates = rates or bench.rates
    failed = []
    for number in wanted:
        if number != "0":
            bench.spin()
        if bench.late or not run_part(bench, number, known[number], out):
            failed.append(number)
    return failed


def in_processes(out: Path, wanted: list[str], seconds: float, *, tiny: bool) -> list[str]:
    """Run each part in a process of its own; return those that failed, or that there was no time for."""
    end, failed = time.monotonic() + seconds, []
    for number in wanted:
        left = min(LIMITS[number], end - time.monotonic())
        command = ["-m", "benchmarks.device", "--here", "--out", str(out), "--parts", number]
        command += ["--seconds", str(left), *["--tiny"] * tiny]
        if left <= 0 or not run_process(
            [sys.executable, *command], out / f"part-{number}.json", left + GRACE
        ):
            failed.append(number)
    return failed


def run_process(command: list[str], path: Path, seconds: float) -> bool:
    """Run a part's process; whether it ended well. What it could not write itself is added to its result."""
    path.unlink(missing_ok=True)
    try:
        code = subprocess.run(command, timeout=seconds, check=False).returncode
        error = f"the process ended with status {code}"
    except subprocess.TimeoutExpired:
        code, error = -1, f"the process was stopped after {seconds:.0f} s"
    if code not in {0, 1}:
        result = json.loads(path.read_text()) if path.exists() else {"rows": []}
        write(path, result | {"error": error})
        print(error, flush=True)
    return code == 0


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
    parser.add_argument("--parts", default=",".join(LIMITS), help="numbers, with commas")
    parser.add_argument("--seconds", type=float, default=540, help="no row begins later")
    parser.add_argument("--tiny", action="store_true", help="shapes for the interpreter, to test this file")
    parser.add_argument("--here", action="store_true", help="all parts in this process, not in one each")
    options = parser.parse_args()
    wanted = options.parts.split(",")
    unknown = [number for number in wanted if number not in LIMITS]
    if unknown:
        parser.error(f"--parts: expected {', '.join(LIMITS)}, found {', '.join(unknown)}")
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("no GPU is at hand: this measures nothing on a CPU (--tiny only tests it)")
    options.out.mkdir(parents=True, exist_ok=True)
    if "0" not in wanted and not options.here:
        wanted = ["0", *wanted]  # the predictions are made of its rates
    run = in_this_process if options.here else in_processes
    failed = run(options.out, wanted, options.seconds, tiny=options.tiny)
    if not options.here:
        print(f"{len(wanted)} parts, failed, wrong or not begun: {', '.join(failed) or 'none'}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
