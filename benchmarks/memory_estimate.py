"""What `alignkit estimate` says of memory, against the peaks of real runs on this machine.

`python -m benchmarks.memory_estimate [--models FOLDER] [--only NAME] [--twice]`: six runs of two steps on SmolLM2,
each in a fresh process. The peak is the process's largest size over what it was with every library loaded and a
small product made. glibc is told to give back what is freed, so that the size is what is in use; with --twice a
second run shows what its default keeps beside that. Prints a table and writes results/memory-estimate.json; a
deviation beyond 20 % is an error.
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.heads import RESULTS, machine
from benchmarks.measure import OnCpu, in_fresh_process

MODELS = Path(".alignkit/models")
POLICY, STUDENT = "smollm2-135m-instruct", "smollm2-third"
TOLERANCE = 0.2
STEPS = 2
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""glibc gives back every block that is freed. By default it keeps those up to 32 MiB in a heap with holes."""
WORDS = "the of and to in is that it was for on are as with they be at one have this from or had by".split()  # noqa: SIM905


@dataclass(frozen=True)
class Run:
    """A recipe's own parts; the rest is the same for all."""

    method: dict[str, Any]
    rows: str
    """Which kind of data."""
    words: int
    """Of an answer, about as many tokens."""
    model: str = POLICY
    lora: bool = False
    training: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "f-DPO, LoRA": Run({"type": "f_dpo"}, "pairs", 60, lora=True, training={"batch_size": 2}),
    "f-DPO, all weights": Run({"type": "f_dpo"}, "pairs", 60, STUDENT, training={"batch_size": 2}),
    "D2O, LoRA": Run(
        {"type": "d2o", "sequence_batch_size": 5},
        "samples",
        60,
        STUDENT,
        lora=True,
        training={"batch_size": 1},
    ),
    "SinKD, all weights": Run(
        {"type": "sinkd", "teacher": {"path": POLICY}}, "answers", 80, STUDENT, training={"batch_size": 4}
    ),
    "BD-KD, all weights, teacher LoRA": Run(
        {"type": "bd_kd", "teacher": {"path": POLICY}, "teacher_lora": {"r": 16}},
        "answers",
        60,
        STUDENT,
        training={"batch_size": 4},
    ),
    "supervised, all weights, checkpointing": Run(
        {"type": "supervised"}, "answers", 100, training={"batch_size": 4, "gradient_checkpointing": True}
    ),
}


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS, help=f"holds {POLICY} and {STUDENT}")
    parser.add_argument("--only", choices=RUNS, help="this run alone; nothing is written")
    parser.add_argument("--twice", action="store_true", help="each also under glibc's defaults")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train(options.one)))
        return
    figures = {}
    for name in [options.only] if options.only else RUNS:
        figures[name] = compare(RUNS[name], options.models.resolve(), twice=options.twice)
        print(f"{name}: {figures[name]}", flush=True)
    show(figures)
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        result = {"machine": machine("cpu"), "steps": STEPS, "figures": figures}
        (RESULTS / "memory-estimate.json").write_text(json.dumps(result, indent=1) + "\n")
    if wrong := [name for name, found in figures.items() if abs(found["ratio"] - 1) > TOLERANCE]:
        raise SystemExit(f"beyond {TOLERANCE:.0%}: {', '.join(wrong)}")


def compare(run: Run, models: Path, *, twice: bool = False) -> dict[str, Any]:
    """The estimate of a run and its real peak, in MiB; `twice`, also under glibc's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        return compare_recipe(write_recipe(run, models, Path(folder)), twice=twice)


def compare_recipe(path: Path, *, twice: bool) -> dict[str, Any]:
    """The same, of a recipe's file."""
    from alignkit.estimate import estimate, lengths_of
    from alignkit.recipe import Recipe

    recipe = Recipe.load(path)
    expected = estimate(recipe, lengths_of(recipe))
    command = ("benchmarks.memory_estimate", "--one", str(path))
    measured = in_fresh_process(*command, environment=ALLOCATOR)
    default = in_fresh_process(*command) if twice else {"peak_mb": float("nan")}
    return {
        "estimated_mb": round(expected.memory.peak / 2**20),
        "measured_mb": round(measured["peak_mb"]),
        "default_allocator_mb": round(default["peak_mb"]) if twice else None,
        "ratio": round(expected.memory.peak / 2**20 / measured["peak_mb"], 3),
        "moment": expected.memory.moment,
        "kinds_mb": {kind: round(size / 2**20) for kind, size in expected.memory.kinds.items() if size},
        "seconds_a_step": round(measured["seconds"], 1),
    }


def show(figures: dict[str, dict[str, Any]]) -> None:
    """One line a run."""
    columns = ("estimated_mb", "measured_mb", "ratio", "default_allocator_mb", "moment")
    table = Table(
        "run", "estimated", "measured", "ratio", "glibc's default", "most in the", title="Peak, MiB"
    )
    for name, found in figures.items():
        table.add_row(name, *(str(found[key] or "-") for key in columns))
    Console().print(table)


def write_recipe(run: Run, models: Path, folder: Path) -> Path:
    """The recipe's file and its data in `folder`."""
    import yaml

    method = dict(run.method)
    if "teacher" in method:
        method["teacher"] = {"path": str(models / method["teacher"]["path"])}
    data = folder / "train.jsonl"
    rows = write_rows(run.rows, run.words, STEPS * run.training["batch_size"])
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(models / run.model)},
        "data": {"train": str(data), "max_length": 1024},
        "method": method,
        "lora": {"r": 16} if run.lora else None,
        "training": {"max_steps": STEPS, "save_steps": 1000, "learning_rate": 1e-6, **run.training},
        "collapse_guard": None,
        "output_dir": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_rows(kind: str, words: int, count: int) -> list[dict[str, Any]]:
    """Rows whose answers differ a little in length, so that batches are padded; the longest is in every batch."""
    chance = random.Random(0)

    def text(number: int) -> str:
        return " ".join(chance.choices(WORDS, k=number))

    def answer(number: int) -> str:
        return text(words - 5 * (number % 2))

    def user(number: int) -> dict[str, str]:
        return {"role": "user", "content": text(20 + number % 3)}

    def row(number: int) -> dict[str, Any]:
        prompt, answers = user(number), [answer(number + index) for index in range(5)]
        if kind == "pairs":
            return {
                "prompt": [prompt],
                "chosen": [{"role": "assistant", "content": answers[0]}],
                "rejected": [{"role": "assistant", "content": answers[1]}],
            }
        if kind == "samples":
            return {"prompt": prompt["content"], "rejected": answers[0], "samples": answers[1:]}
        return {"messages": [prompt, {"role": "assistant", "content": answers[0]}]}

    return [row(number) for number in range(count)]


def train(path: Path) -> dict[str, float]:
    """In the fresh process: the run, without its last evaluation and saving."""
    import torch

    import alignkit.trainers  # noqa: F401 - for what it loads
    from alignkit.recipe import Recipe
    from alignkit.train import build_trainer, open_folder, quiet_libraries, use_all_cores

    quiet_libraries()
    use_all_cores()
    (torch.randn(512, 512, requires_grad=True) @ torch.randn(512, 512)).sum().backward()
    recipe = Recipe.load(path)
    memory = OnCpu()
    trainer = build_trainer(recipe, open_folder(recipe))
    started = time.perf_counter()
    trainer.train()
    seconds = (time.perf_counter() - started) / trainer.state.global_step
    return {"peak_mb": (memory.peak() - memory.base) / 2**20, "seconds": seconds}


if __name__ == "__main__":
    main()
