"""A D2O step on rows of log-normal lengths: padded in two passes, and packed in one graph where it fits.

`python -m benchmarks.d2o [--model FOLDER] [--steps N]`: the same rows (a prompt, K samples and a dispreferred
answer), seed and settings, each form in a fresh process; losses must agree to 5e-5. `padded` is a step with neither
packing nor a graph of all answers of a row. Prints tokens a second, which count the prompt once for each answer in
both forms, and peak memory over the loaded model. Writes results/d2o.json. Run it on a quiet machine.
"""

import argparse
import json
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.heads import RESULTS, machine
from benchmarks.measure import in_fresh_process
from benchmarks.packing import LONGEST, log_normal
from benchmarks.training_step import measured, with_model

FORMS = {"padded": False, "packed": True}
"""Name -> whether batches are packed."""
SAMPLES, ROWS = 11, 2
"""K, and rows of a step."""
LENGTHS = (200, 100)
"""Means of the prompt's and the answers' tokens."""
TOLERANCE = 5e-5
"""Of the losses: a random answer of 100 tokens has about -1,000 nats, whose last bit in float32 is 6e-5."""


def main() -> None:
    """Measure both forms, compare the losses, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="steps of each form; the first is a warm-up")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a step")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all lengths, for a trial")
    parser.add_argument("--one", choices=FORMS, help=argparse.SUPPRESS)
    options = with_model(parser)
    if options.one:
        print(json.dumps(train(options)))
        return
    given = [f"--{name}={getattr(options, name)}" for name in ("model", "steps", "rows", "scale")]
    figures = {name: in_fresh_process("benchmarks.d2o", "--one", name, *given) for name in FORMS}
    show(figures)
    pairs = zip(figures["padded"]["losses"], figures["packed"]["losses"], strict=True)
    gap = max(abs(one - other) for one, other in pairs)
    if gap > TOLERANCE:
        raise SystemExit(f"the losses differ by {gap:.1e}, expected at most {TOLERANCE:g}")
    if options.scale == 1:
        RESULTS.mkdir(exist_ok=True)
        sizes = {"rows": options.rows, "steps": options.steps, "samples": SAMPLES, "lengths": LENGTHS}
        result = {"machine": machine("cpu"), **sizes, "figures": figures}
        (RESULTS / "d2o.json").write_text(json.dumps(result, indent=1) + "\n")


def show(figures: dict[str, dict[str, Any]]) -> None:
    """Print one line a form, with ratios to the padded form."""
    columns = ("form", "tokens a second", "x", "seconds a step", "peak MB", "last loss")
    table = Table(*columns, title=f"D2O step, LoRA, K = {SAMPLES}, lengths {LENGTHS}")
    base = figures["padded"]["tokens_per_second"]
    for name, found in figures.items():
        rate = found["tokens_per_second"]
        seconds, peak = f"{found['seconds']:.2f}", f"{found['peak_mb']:.0f}"
        table.add_row(name, f"{rate:.0f}", f"{rate / base:.2f}", seconds, peak, f"{found['losses'][-1]:.6f}")
    Console().print(table)


def rows(count: int, words: int, scale: float) -> list[dict[str, Any]]:
    """`count` tokenised rows of random ids below `words`, as D2OTrainer takes them."""
    ids = log_normal(words, scale)
    prompt, answer = LENGTHS
    found = []
    for number in range(count):
        begin = ids(prompt)
        found.append(
            {
                "prompt_ids": begin,
                "begin_ids": begin,
                "rejected_ids": ids(answer),
                "sample_ids": [ids(answer) for _ in range(SAMPLES)],
                "sampling_prompt_ids": [begin],
                "given": True,
                "rejected_text": "",
                "text": f"row {number}",
            }
        )
    return found


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Run the steps of one form, in the fresh process."""
    from transformers import AutoConfig

    from alignkit.trainers import D2OConfig, D2OTrainer

    words = AutoConfig.from_pretrained(options.model).vocab_size
    data = rows(options.steps * options.rows, words, options.scale)
    settings = partial(
        D2OConfig,
        per_device_train_batch_size=options.rows,
        max_steps=options.steps,
        max_length=LONGEST,
        optim="sgd",  # Adam's first steps make of a gradient's last bits as much as of all the others
    )
    trainer_of = partial(D2OTrainer, packing=FORMS[options.one], report=print)
    found = measured(trainer_of, settings, options.model, data)
    tokens = sum(
        len(row["prompt_ids"]) + len(answer)
        for row in data
        for answer in (row["rejected_ids"], *row["sample_ids"])
    )
    return found | {"tokens_per_second": tokens / options.steps / found["seconds"]}


if __name__ == "__main__":
    main()
