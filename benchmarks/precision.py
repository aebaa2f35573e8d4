"""The error of log-ratios and the step time of each precision, beside TRL's default.

`python -m benchmarks.precision [--model FOLDER] [--steps N] [--tokens N]`: on a GPU if there is one, measures float32
weights, and on a GPU bfloat16 ones too: computed as they are (`no`), with TF32 products, and under autocast to fp16
and to bf16, which is TRL's default. The error is that of log pi - log pi_ref of random answers under a small random
adapter, against float32, in nats a hundred tokens rms (alignkit.precision). A step is a forward, a backward and an
optimizer step of LoRA on one batch; on a CPU none in fp16, where it takes minutes. `auto` is what
`mixed_precision: auto` chooses under the default budget. Writes results/precision.json. Run it on a quiet machine.
"""

import argparse
import gc
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from alignkit.precision import InFloat32, Row, choose, error_of, log_ratios, perturbed, ways
from alignkit.sections import TrainingSection
from benchmarks.heads import RESULTS, machine
from benchmarks.training_step import with_model

TRL = "bf16"
"""TRL's default precision."""
ROWS, ANSWER = 4, 119
"""Rows of a batch, and tokens of the answers whose log-ratios are compared."""
TOKENS = 256
"""Tokens of a row, its answer included."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def main() -> None:
    """Measure each dtype of the weights, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=5, help="steps of each precision; the first is a warm-up"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of a row")
    parser.add_argument("--out", type=Path, default=RESULTS / "precision.json", help="file of the results")
    options = with_model(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = [torch.float32, *([torch.bfloat16] if device.type == "cuda" else [])]
    found = {
        NAMES[dtype]: measured(options.model, dtype, device, options.steps, options.tokens)
        for dtype in dtypes
    }
    show(found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine(device.type),
        "model": options.model.name,
        "tokens": options.tokens,
        "weights": found,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def measured(
    model: Path, dtype: torch.dtype, device: torch.device, steps: int, tokens: int
) -> dict[str, Any]:
    """The error and the seconds a step of each precision of weights of this dtype, and the choice of `auto`."""
    loaded = load(model, dtype, device)
    rows = random_rows(loaded.config.get_text_config().vocab_size, tokens)
    budget = TrainingSection.model_fields["precision_budget"].default
    auto = choose(loaded, rows, budget).way
    with perturbed(loaded, 0) as trial:
        exact, _ = log_ratios(trial, rows, InFloat32)
        errors = {
            way: error_of(log_ratios(trial, rows, context)[0], exact, rows)
            for way, context in precisions(dtype, device).items()
        }
    del loaded, trial
    gc.collect()
    figures = {}
    for way, context in precisions(dtype, device).items():
        error = errors[way] if math.isfinite(errors[way]) else None
        trains = way in ways(dtype, device)
        seconds = step_seconds(load(model, dtype, device), rows, context, steps) if trains else None
        figures[way] = {"error": error, "seconds": seconds}
    return {"auto": auto, "budget": budget, "ways": figures}


def precisions(
    dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """The ways to train on a device, and fp16 autocast, of which only the error is measured on a CPU."""
    fp16 = partial(torch.autocast, device.type, torch.float16)
    return {"fp16": fp16} | ways(dtype, device)


def load(model: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The model on the device."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device)


def random_rows(vocabulary: int, tokens: int) -> list[Row]:
    """Rows of random token ids, each with an answer at its end."""
    chance = random.Random(0)
    answer = min(ANSWER, tokens // 2)
    return [
        ([chance.randrange(vocabulary) for _ in range(tokens)], [(tokens - answer, tokens)])
        for _ in range(ROWS)
    ]


def step_seconds(
    model: Any, rows: list[Row], context: Callable[[], AbstractContextManager[Any]], steps: int
) -> float:
    """Median seconds of the training steps after the first, of float32 adapters on frozen weights."""
    from peft import LoraConfig, get_peft_model

    device = model.device
    policy = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    ids = torch.tensor([list(row[0]) for row in rows], device=device)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with context():
            loss = policy(input_ids=ids, labels=ids, use_cache=False).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:] or seconds)


def show(found: dict[str, Any]) -> None:
    """Print one line a precision, with its step's ratio to TRL's default."""
    columns = ("weights", "precision", "nats a hundred tokens", "seconds a step", "x TRL's", "")
    table = Table(*columns, title="Error of log-ratios, and a LoRA step")
    for weights, figures in found.items():
        base = figures["ways"][TRL]["seconds"]
        for way, one in figures["ways"].items():
            error = "overflows" if one["error"] is None else f"{one['error']:.4f}"
            seconds = one["seconds"]
            times = ("-", "-") if seconds is None else (f"{seconds:.3f}", f"{seconds / base:.2f}")
            marks = [
                *(["TRL's default"] if way == TRL else []),
                *(["auto"] if way == figures["auto"] else []),
            ]
            table.add_row(weights, way, error, *times, ", ".join(marks))
    Console().print(table)


if __name__ == "__main__":
    main()
