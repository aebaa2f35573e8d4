"""A second run on data that was trained on before, and a sweep of eight divergences, next to TRL's DPOTrainer.

`python -m benchmarks.reuse [--model FOLDER] [--pairs N]`: one epoch of random pairs of HH-like lengths. `first`
scores the reference and trains; `second` has another beta and reads the stored one; `sweep` trains one run a
divergence. Each is a command, timed from start to end, in an empty home. TRL's trainer takes as many steps over the
same rows in one process; eight runs take eight times as long, because its time does not depend on the divergence.
Evaluation and collapse guard are off everywhere. Prints seconds and ratios, and writes results/reuse.json. Run it on
a quiet machine.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.heads import RESULTS, machine
from benchmarks.packing import LENGTHS, LONGEST, log_normal
from benchmarks.training_step import measured, with_model

PAIRS, BATCH, SEED = 96, 8, 0
DIVERGENCES = (
    "reverse_kl",
    "forward_kl",
    "js_divergence",
    "alpha_divergence",
    "squared_hellinger",
    "jeffreys",
    "neyman_chi2",
    "chi2_kl",
)


def main() -> None:
    """Time all, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of the epoch")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all lengths, for a trial")
    parser.add_argument("--trl", metavar="ROWS", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "reuse.json", help="file of the results")
    options = with_model(parser)
    if options.trl:
        train_trl(options.model, options.trl)
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds = timed(options, Path(folder))
    show(seconds)
    result = {"machine": machine("cpu"), "pairs": options.pairs, "scale": options.scale, "batch": BATCH}
    result["seconds"] = seconds
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def timed(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of each command."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in pairs(options)), encoding="utf-8")
    recipe = {
        "model": {"path": str(options.model.resolve())},
        "data": {"train": str(rows), "max_length": LONGEST},
        "method": {"type": "f_dpo", "beta": 0.1},
        "lora": {"r": 8},
        "training": {"batch_size": BATCH, "learning_rate": 1e-5},
        "collapse_guard": None,
        "seed": SEED,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    swept = {"sweep": {"method.divergence": list(DIVERGENCES)}, "output_dir": str(folder / "sweep")}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(recipe | swept), encoding="utf-8")
    alignkit = Path(sys.executable).with_name("alignkit")
    train = [alignkit, "train", path]
    return {
        "TRL": command(
            folder / "trl-home",
            sys.executable,
            "-m",
            "benchmarks.reuse",
            "--model",
            options.model,
            "--trl",
            rows,
        ),
        "first": command(folder / "home", *train, f"output_dir={folder}/first"),
        "second": command(folder / "home", *train, f"output_dir={folder}/second", "method.beta=0.2"),
        "sweep": command(folder / "sweep-home", alignkit, "sweep", folder / "sweep.yaml"),
    }


def command(home: Path, *given: Any) -> float:
    """Seconds of a command with a home of its own. Raises RuntimeError with the end of its output."""
    given = tuple(map(str, given))
    began = time.monotonic()
    done = subprocess.run(
        given, capture_output=True, text=True, check=False, env=os.environ | {"ALIGNKIT_HOME": str(home)}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(given)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.monotonic() - began


def show(seconds: dict[str, float]) -> None:
    """Print one line a command, with its ratio."""
    against = {"second": ("the first run", "first", 1), "sweep": ("eight TRL runs", "TRL", len(DIVERGENCES))}
    table = Table("command", "seconds", "ratio", "to")
    for name, took in seconds.items():
        to, base, times = against.get(name, ("", name, 1))
        table.add_row(name, f"{took:.0f}", f"{took / seconds[base] / times:.2f}" if to else "", to)
    Console().print(table)


def pairs(options: argparse.Namespace) -> list[dict[str, str]]:
    """Pairs of random words whose numbers of tokens are about those of `LENGTHS["hh"]`, log-normal."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids, (prompt, answer) = log_normal(len(tokenizer), options.scale), LENGTHS["hh"]
    random.seed(SEED)
    means = {"prompt": prompt, "chosen": answer, "rejected": answer}
    return [{name: tokenizer.decode(ids(mean)) for name, mean in means.items()} for _ in range(options.pairs)]


def train_trl(model: Path, rows: Path) -> None:
    """Train TRL's DPOTrainer with its defaults, one epoch of the same rows."""
    from trl import DPOConfig, DPOTrainer

    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    turns = [{key: [{"role": roles[key], "content": row[key]}] for key in roles} for row in lines]
    settings = partial(DPOConfig, per_device_train_batch_size=BATCH, num_train_epochs=1, max_length=LONGEST)
    measured(DPOTrainer, settings, model, turns)


if __name__ == "__main__":
    main()
