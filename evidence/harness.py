"""Runs an experiment over its arms and seeds, keeps each result as it comes, and writes the summary and the plot.

An experiment is an `Evidence`: a claim, its arms, a function from (arm, seed, settings) to measured numbers, and one
that draws them. `python -m evidence.NAME` resumes where an earlier call stopped, unless the settings differ.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from alignkit.data.reading import open_file
from alignkit.disk import put
from alignkit.hardware import cpu_name

ROOT = Path(__file__).resolve().parent.parent
"""Folder of the project."""
RESULTS = ROOT / "evidence" / "results"
PLOTS = ROOT / "docs" / "evidence"
"""Where the plots of `RESULTS` go, so that the documentation shows them."""
WORK = ROOT / "evidence" / "work"
MODEL = ".alignkit/models/smollm2-135m-instruct"
PACKAGES = ("torch", "transformers", "trl", "peft")
T_95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles of Student's t for a two-sided interval of 95 %, by degrees of freedom."""

Values = Mapping[str, float | Sequence[float]]
"""Measured numbers of one run by name. A sequence is a curve, which is kept and drawn but not summarised."""
Drawing = Callable[["Found", Any], None]
"""Draws results into a matplotlib axis."""
Bounds = dict[str, float]
"""`mean`, and `low` and `high` of its 95 % interval."""
Columns = dict[str, dict[str, Bounds]]
"""Arm -> metric -> bounds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How far a call goes."""

    smoke: bool = False
    """Whether to do as little as shows that the script works. Its numbers mean nothing."""
    model: str = MODEL
    """Folder of the language model, for experiments that train one."""
    work: Path = WORK
    """Folder for runs."""
    data: Path | None = None
    """File of rows, for experiments that need data of yours."""

    def steps(self, full: int, smoke: int = 2) -> int:
        """Return `full`, or `smoke` in a smoke test."""
        return smoke if self.smoke else full


@dataclass(frozen=True, slots=True)
class Evidence:
    """An experiment."""

    name: str
    claim: str
    """What should come out, in one sentence."""
    arms: tuple[str, ...]
    measure: Callable[[str, int, Settings], Values]
    """Function from (arm, seed, settings) to what was measured. Equal arguments must give equal numbers."""
    draw: Drawing
    outcome: str = ""
    """What came out, in a sentence or two that stand beside the claim; empty until it has been run."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Other language model -> what came out on it; the result is in a folder of that name in `RESULTS`."""
    compare: Callable[["Found"], Columns] = lambda _: {}
    """Metrics that need the results of several arms, such as differences; they stand in the summary."""
    seeds: int = 3
    needs_model: bool = False
    """Whether it trains the language model of `Settings.model`, which takes hours without a GPU."""
    needs_data: str = ""
    """What `--data` must hold; empty where none is needed."""


@dataclass(frozen=True, slots=True)
class Found:
    """Results by arm and seed."""

    runs: dict[str, dict[int, Values]] = field(default_factory=dict)

    def values(self, arm: str, metric: str) -> list[float]:
        """The metric of each seed of an arm."""
        found = (self.runs[arm][seed][metric] for seed in sorted(self.runs[arm]))
        return [value for value in found if isinstance(value, int | float)]

    def curve(self, arm: str, metric: str) -> list[float]:
        """The mean curve of an arm over its seeds."""
        curves: list[Any] = [self.runs[arm][seed][metric] for seed in sorted(self.runs[arm])]
        return [statistics.fmean(points) for points in zip(*curves, strict=True)]

    def summary(self) -> Columns:
        """Mean and bounds over seeds (Student's t) of every metric that is a number."""
        return {
            arm: {
                metric: interval(self.values(arm, metric))
                for metric, value in next(iter(seeds.values())).items()
                if isinstance(value, int | float)
            }
            for arm, seeds in self.runs.items()
        }

    def paired(self, arm: str, other: str, metric: str) -> Bounds:
        """Mean and 95 % interval of the difference arm - other over the same seeds."""
        pairs = zip(self.values(arm, metric), self.values(other, metric), strict=True)
        return interval([one - two for one, two in pairs])


def summarised(evidence: Evidence, found: Found) -> Columns:
    """The summary, with what compares arms."""
    compared = evidence.compare(found)
    return {arm: metrics | compared.get(arm, {}) for arm, metrics in found.summary().items()}


def interval(values: Sequence[float]) -> Bounds:
    """Mean and bounds of its 95 % interval. One value has no interval: its bounds are itself."""
    mean = statistics.fmean(values)
    freedom = len(values) - 1
    if freedom == 0:
        return {"mean": mean, "low": mean, "high": mean}
    half = T_95[min(freedom, len(T_95) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def bars(metric: str, label: str) -> Drawing:
    """Return a drawing of a metric's mean by arm, with its interval and the seeds as points."""

    def draw(found: Found, axis: Any) -> None:
        for at, arm in enumerate(found.runs):
            values = found.values(arm, metric)
            bounds = interval(values)
            axis.bar(at, bounds["mean"], color="tab:blue", alpha=0.35)
            axis.vlines(at, bounds["low"], bounds["high"], color="tab:blue")
            axis.plot([at] * len(values), values, "o", color="black", markersize=3)
        axis.set(ylabel=label, xticks=range(len(found.runs)))
        axis.set_xticklabels(list(found.runs), rotation=20, ha="right")

    return draw


def lines(
    found: Found, axis: Any, metric: str, *, label: str, x_label: str, x: Sequence[float] | None = None
) -> None:
    """Draw a mean curve for each arm."""
    for arm in found.runs:
        curve = found.curve(arm, metric)
        axis.plot(x or range(len(curve)), curve, label=arm)
    axis.set(xlabel=x_label, ylabel=label)
    axis.legend()


def gather(
    evidence: Evidence, seeds: int, settings: Settings, folder: Path, arms: Sequence[str] | None = None
) -> Found:
    """Run what `folder` does not hold yet, of `arms` or of all, and write NAME.json after each run."""
    path = folder / f"{evidence.name}.json"
    kept = _read(path, settings)
    for arm in arms or evidence.arms:
        for seed in range(seeds):
            if str(seed) in kept.get(arm, {}):
                continue
            began = time.monotonic()
            kept.setdefault(arm, {})[str(seed)] = measured(evidence, arm, seed, settings)
            _write(path, evidence, settings, kept)
            print(f"{evidence.name} {arm} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    order = [arm for arm in evidence.arms if arm in kept]
    return Found(
        {arm: {int(seed): kept[arm][seed] for seed in kept[arm] if int(seed) < seeds} for arm in order}
    )


def measured(evidence: Evidence, arm: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Measure one arm with one seed: name -> number or list of numbers."""
    torch.manual_seed(seed)
    return {name: _plain(value) for name, value in evidence.measure(arm, seed, settings).items()}


def _plain(value: Any) -> Any:
    return [float(one) for one in value] if isinstance(value, Sequence) else float(value)


def _read(path: Path, settings: Settings) -> dict[str, dict[str, Any]]:
    """The runs that `path` holds; none if it is missing or was made with other settings."""
    runs: dict[str, dict[str, Any]] = _written(path, settings).get("runs", {})
    return runs


def _machines(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """The machines that the runs of `path` were measured on."""
    found: list[dict[str, Any]] = _written(path, settings).get("machines", [])
    return found


def _written(path: Path, settings: Settings) -> dict[str, Any]:
    """The content of `path`; empty if it is missing or was made with other settings."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["settings"] == _described(settings) else {}


def _described(settings: Settings) -> dict[str, Any]:
    data = {} if settings.data is None else {"data": {"sha256": _digest(settings.data)}}
    return {"smoke": settings.smoke, "model": Path(settings.model).name, **data}


def _digest(path: Path) -> str:
    """The SHA-256 of a file's content, decompressed if it is gzipped."""
    with ExitStack() as stack:
        return hashlib.file_digest(open_file(path, stack), "sha256").hexdigest()


def _write(path: Path, evidence: Evidence, settings: Settings, runs: dict[str, dict[str, Any]]) -> None:
    found = Found({arm: {int(seed): values for seed, values in of.items()} for arm, of in runs.items()})
    own, earlier = _machine(), _machines(path, settings)
    whole = {
        "name": evidence.name,
        "claim": evidence.claim,
        "command": f"python -m evidence.{evidence.name}" + " --data FILE" * bool(evidence.needs_data),
        "settings": _described(settings),
        "versions": {name: version(name) for name in PACKAGES},
        "machines": earlier if own in earlier else [*earlier, own],
        "summary": summarised(evidence, found),
        "runs": runs,
    }
    put(path, (json.dumps(whole, indent=1) + "\n").encode())


def _machine() -> dict[str, Any]:
    own = {"processor": cpu_name(), "cores": os.cpu_count(), "system": platform.system()}
    return own | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def plot(evidence: Evidence, found: Found, folder: Path) -> Path:
    """Draw NAME.png."""
    import matplotlib as mpl  # an extra, and slow to import

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.4, 3.6), layout="constrained")
    evidence.draw(found, axis)
    axis.set_title(evidence.name.replace("_", " "))
    path = folder / f"{evidence.name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path


def place(evidence: Evidence, settings: Settings) -> tuple[Path, Path]:
    """The folders of a result and of its plot: those of another language model than `MODEL` have its name."""
    if settings.smoke:
        return settings.work / "smoke", settings.work / "smoke"
    model = Path(settings.model).name
    if not evidence.needs_model or model == Path(MODEL).name:
        return RESULTS, PLOTS
    return RESULTS / model, PLOTS / model


def main(evidence: Evidence, argv: Sequence[str] | None = None) -> Found:
    """Run an experiment from the command line, and print its summary."""
    parser = argparse.ArgumentParser(prog=f"python -m evidence.{evidence.name}", description=evidence.claim)
    parser.add_argument("--seeds", type=int, default=evidence.seeds, help="number of seeds, from 0")
    parser.add_argument(
        "--arms", nargs="+", choices=evidence.arms, metavar="ARM", help="default: all of them"
    )
    parser.add_argument("--smoke", action="store_true", help="do as little as shows that the script works")
    parser.add_argument("--model", default=MODEL, help="folder of the language model, where one is trained")
    if evidence.needs_data:
        parser.add_argument("--data", type=Path, required=True, metavar="FILE", help=evidence.needs_data)
    parser.add_argument("--out", type=Path, help="folder for the result; default: see evidence/README.md")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for runs; default: evidence/work")
    given = parser.parse_args(argv)
    settings = Settings(given.smoke, given.model, given.work, getattr(given, "data", None))
    own, plots = place(evidence, settings)
    folder = given.out or own
    folder.mkdir(parents=True, exist_ok=True)
    found = gather(evidence, given.seeds, settings, folder, given.arms)
    print(f"{evidence.claim}\n")
    for arm, metrics in summarised(evidence, found).items():
        shown = (
            f"{name} {one['mean']:.4g} [{one['low']:.4g}, {one['high']:.4g}]" for name, one in metrics.items()
        )
        print(f"{arm}: {', '.join(shown)}")
    drawn = plot(evidence, found, plots if folder == own else folder)
    print(f"\nWritten: {folder / evidence.name}.json, {drawn}")
    return found
