"""What a machine with a GPU is asked in one go: kernels, tests, and a short run of all that trains or serves there.

    python -m benchmarks.gpu_day --out FOLDER [--only heads,tests] [--tiny]

Each step is a process of its own with a time limit. After each, FOLDER/gpu-day.json is written, with its seconds and,
if it failed, the end of its output; FOLDER/NAME.log has all of it. What this machine or its packages cannot run is
skipped, with the reason. `--tiny` takes a tiny model and plain float32, to test this file on a CPU.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alignkit.methods import METHODS
from benchmarks.device_step import NARROW

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
VOCABULARY = 151_936
LAST_LINES = 30
"""Lines of a failed step's output in the result."""


class Step(NamedTuple):
    """One process, or why it is not started."""

    name: str
    command: tuple[str, ...] = ()
    """Arguments of this Python."""
    skipped: str = ""
    """The reason, if the step is not for this machine."""
    seconds: float = 900.0
    """The limit of its time."""


@dataclass(frozen=True)
class Day:
    """The folder, and what the machine has."""

    out: Path
    tiny: bool
    gpus: int

    @cached_property
    def model(self) -> Path:
        """A model of random weights with a 0.5B's widths and a small tokenizer, made when it is first used."""
        from tests.tiny import (  # saves transformers for the kernels alone
            build_tiny_model,
            build_tiny_tokenizer,
        )

        folder = self.out / "model"
        if self.tiny:
            return build_tiny_model(folder)
        from transformers import LlamaConfig, LlamaForCausalLM  # saves transformers for the kernels alone

        tokens = build_tiny_tokenizer(folder)
        special = {name: getattr(tokens, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **NARROW, **special)
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        return folder

    def missing(self, *packages: str, gpus: int = 1) -> str:
        """Why a step cannot run that needs these packages and as many GPUs; empty if it can."""
        absent = [name for name in packages if importlib.util.find_spec(name) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        return f"needs {gpus} GPU{'s' * (gpus > 1)}, found {self.gpus}" if self.gpus < gpus else ""


def heads(day: Day) -> Iterator[Step]:
    """The fused heads: right, and how fast."""
    more = ("--tiny", "--parts", "0") if day.tiny else ()
    yield Step("heads", ("-m", "benchmarks.device", "--out", str(day.out / "device"), *more))


def tests(day: Day) -> Iterator[Step]:
    """The tests that need a GPU."""
    yield Step("tests", ("-m", "pytest", "-q", "-m", "gpu", "tests"), skipped=day.missing("pytest"))


def methods(day: Day) -> Iterator[Step]:
    """Two steps of every method in bfloat16."""
    for name in METHODS:
        yield training(day, f"train {name}", name)


def quantised(day: Day) -> Iterator[Step]:
    """Two steps over nf4 weights."""
    skipped = day.missing("bitsandbytes")
    yield (
        Step("nf4", skipped=skipped)
        if skipped
        else training(day, "nf4", "supervised", "model.quantization=nf4")
    )


def several_devices(day: Day) -> Iterator[Step]:
    """Two steps on two GPUs, whose gradients NCCL adds up."""
    skipped = day.missing(gpus=2)
    yield (
        Step("nccl", skipped=skipped)
        if skipped
        else training(day, "nccl", "supervised", "--config-file", "ddp", "--num-processes", "2")
    )


def serving(day: Day) -> Iterator[Step]:
    """An answer of vLLM with the adapter that `methods` trained."""
    adapter = run_folder(day, "train supervised") / "adapter"
    skipped = day.missing("vllm")
    if not skipped and not adapter.exists():
        skipped = "no adapter: the step 'train supervised' has not run"
    command = ("-m", "benchmarks.vllm_adapter", str(day.model), str(adapter)) if not skipped else ()
    yield Step("vllm", command, skipped)


STAGES: dict[str, Callable[[Day], Iterator[Step]]] = {
    "heads": heads,
    "tests": tests,
    "methods": methods,
    "nf4": quantised,
    "nccl": several_devices,
    "vllm": serving,
}


def training(day: Day, name: str, method: str, *more: str) -> Step:
    """A run of two steps of a method's recipe for small machines, on the random model."""
    recipe = RECIPES / method / "smollm2.yaml"
    other = [] if recipe.exists() else [f"method={{type: {method}}}"]
    if not recipe.exists():
        recipe = RECIPES / "f_dpo" / "smollm2.yaml"
    text = recipe.read_text()
    teacher = ["method.teacher.path"] * ("  teacher:" in text)
    overrides = [
        *other,
        *(f"{key}={day.model}" for key in ("model.path", *teacher)),
        f"output_dir={run_folder(day, name)}",
        "training.max_steps=2",
        "training.eval_steps=2",
        "training.warmup_steps=0",
    ]
    if not day.tiny:
        overrides += ["model.dtype=auto", "training.mixed_precision=bf16"]
    options = [word for word in more if "=" not in word]
    overrides += [word for word in more if "=" in word]
    return Step(name, ("-m", "alignkit", "train", str(recipe), *options, *overrides))


def run_folder(day: Day, name: str) -> Path:
    """Return the folder of the run of that name."""
    return day.out / "runs" / name.replace(" ", "-")


def run(day: Day, step: Step) -> dict[str, Any]:
    """Run one step; return its row of the result."""
    if step.skipped:
        return {"name": step.name, "skipped": step.skipped}
    log, started = day.out / f"{step.name.replace(' ', '-')}.log", time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, *step.command]
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
        try:
            code: int | str = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            code = f"stopped after {step.seconds:g} s"
        finally:  # what the step has started ends with it: it would hold the GPU's memory
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    row = {"name": step.name, "seconds": round(time.monotonic() - started, 1), "exit": code}
    if code == 0:
        return row
    return row | {"output": log.read_text(errors="replace").splitlines()[-LAST_LINES:]}


def steps_of(stage: str, day: Day) -> Iterator[Step]:
    """The stage's steps; if they cannot be made, a step that fails with the reason."""
    try:
        yield from STAGES[stage](day)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        yield Step(stage, ("-c", f"raise SystemExit({reason!r})"))


def main() -> None:
    """Run the stages in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the result and the logs")
    parser.add_argument("--only", default=",".join(STAGES), help="stages, with commas")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU, to test this file")
    options = parser.parse_args()
    wanted = options.only.split(",")
    unknown = [name for name in wanted if name not in STAGES]
    if unknown:
        parser.error(f"--only: expected {', '.join(STAGES)}, found {', '.join(unknown)}")
    gpus = torch.cuda.device_count()
    if not gpus and not options.tiny:
        parser.error("no GPU is at hand: this measures nothing on a CPU (--tiny only tests it)")
    options.out.mkdir(parents=True, exist_ok=True)
    day = Day(options.out.resolve(), options.tiny, gpus)
    rows: list[dict[str, Any]] = []
    for stage in wanted:
        print(f"== {(STAGES[stage].__doc__ or stage).strip()}", flush=True)
        for step in steps_of(stage, day):
            rows.append(run(day, step))
            (day.out / "gpu-day.json").write_text(json.dumps(rows, indent=1) + "\n")
            print(
                "  ".join(f"{key} {value}" for key, value in rows[-1].items() if key != "output"), flush=True
            )
    failed = [row["name"] for row in rows if row.get("exit", 0) != 0]
    print(f"{len(rows)} steps, failed: {', '.join(failed) or 'none'}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
