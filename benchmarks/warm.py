"""How soon a run of 200 pairs is ready to step: started cold, and by a trainer that waits with the base model loaded.

`python -m benchmarks.warm [--model FOLDER] [--runs N]`: f-DPO with LoRA, each run in a fresh process and folder. The
time goes from the request to the event "Training started": data read and tokenised, adapter made, batches of both
forms and the fused head compared. What follows, the collapse guard's first answers and the first step, is timed to
the end of that step. Prints medians, and writes results/warm.json. Run it on a quiet machine.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from alignkit.launch import Request, standby_command
from alignkit.standby import READY
from benchmarks.heads import RESULTS, machine
from benchmarks.training_step import WORDS, with_model

PAIRS, WORDS_EACH, RUNS = 200, 40, 3
MARKS = {"ready": "Training started", "first step": "Step 1/"}
"""What is timed -> how its event's message begins."""
PATIENCE = 600.0
"""Seconds after which an event is not awaited any more."""


def main() -> None:
    """Time both, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS / "warm.json", help="file of the results")
    options = with_model(parser)
    seconds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_rows(path / "rows.jsonl")
        for kind, start in {"cold": cold, "warm": warm}.items():
            found = [start(options.model.resolve(), path, f"{kind}-{n}") for n in range(options.runs)]
            seconds[kind] = {mark: statistics.median(one[mark] for one in found) for mark in MARKS}
    table = Table("start", *(f"{mark}, s" for mark in MARKS), title=f"f-DPO, LoRA, {PAIRS} pairs")
    for kind, found in seconds.items():
        table.add_row(kind, *(f"{found[mark]:.1f}" for mark in MARKS))
    Console().print(table)
    result = {"machine": machine("cpu"), "pairs": PAIRS, "runs": options.runs, "seconds": seconds}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def write_rows(path: Path) -> None:
    """Pairs of random words."""
    chance = random.Random(0)
    rows = [
        {name: " ".join(chance.choices(WORDS, k=WORDS_EACH)) for name in ("prompt", "chosen", "rejected")}
        for _ in range(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(model: Path, folder: Path, name: str) -> Path:
    """Write a recipe whose run goes to `folder` / `name`; its few steps score no stored reference."""
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"path": str(model), "dtype": "float32"},
                "data": {"train": str(folder / "rows.jsonl")},
                "method": {"type": "f_dpo"},
                "lora": {"r": 8},
                "training": {"batch_size": 2, "max_steps": 2},
                "output_dir": str(folder / name),
            }
        ),
        encoding="utf-8",
    )
    return path


def cold(model: Path, folder: Path, name: str) -> dict[str, float]:
    """Start a run as a program, and time it."""
    command = [sys.executable, "-m", "alignkit.train", str(recipe(model, folder, name))]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment(folder)) as process:
        return timed(process, folder / name, began)


def warm(model: Path, folder: Path, name: str) -> dict[str, float]:
    """Hand a run to a trainer that has loaded the model, as the service does, and time it."""
    command = standby_command(str(model), "float32", None, seconds=PATIENCE)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment(folder)) as process:  # type: ignore[call-overload]
        while (line := process.stdout.readline()) and line.decode().strip() != READY:
            pass
        time.sleep(1.0)  # lets its threads come to rest
        given = [str(recipe(model, folder, name))]
        request = Request(given, environment(folder), str(folder), str(folder / f"{name}.log"))
        began = time.monotonic()
        process.stdin.write(request.to_line())
        process.stdin.flush()
        return timed(process, folder / name, began)


def environment(folder: Path) -> dict[str, str]:
    """This process's, with a home of its own."""
    return {**os.environ, "ALIGNKIT_HOME": str(folder / "home")}


def timed(process: "subprocess.Popen[bytes]", run: Path, began: float) -> dict[str, float]:
    """Seconds from `began` to each mark. Raises RuntimeError if the run ends without one."""
    found: dict[str, float] = {}
    while len(found) < len(MARKS):
        over = process.poll() is not None or time.monotonic() - began > PATIENCE
        said = messages(run / "events.jsonl")
        for mark, start in MARKS.items():
            if mark not in found and any(one.startswith(start) for one in said):
                found[mark] = time.monotonic() - began
        if over and len(found) < len(MARKS):
            raise RuntimeError(f"the run ended after {', '.join(said)}")
        time.sleep(0.01)
    process.terminate()
    process.wait()
    return found


def messages(events: Path) -> list[str]:
    """The messages of a run's events so far."""
    if not events.is_file():
        return []
    lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
    return [str(json.loads(line)["message"]) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    main()
