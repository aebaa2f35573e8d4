"""A DPO step on pairs of log-normal lengths: TRL's DPOTrainer, FDPOTrainer padded, and FDPOTrainer packed.

`python -m benchmarks.packing [--model FOLDER] [--steps N] [--lengths hh]`: the same pairs, seed and settings (TRL's
defaults but for plain descent, gradient checkpointing included), each trainer in a fresh process; losses must agree
to 2e-5. Prints seconds a step and peak memory over the loaded model, and writes results/packing.json. Run it on a
quiet machine.
"""

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.heads import RESULTS, machine
from benchmarks.measure import in_fresh_process
from benchmarks.training_step import measured, with_model

TRAINERS = ("trl", "padded", "packed")
LENGTHS = {"ultrafeedback": (300, 300), "hh": (100, 60)}
"""Name -> means of the prompt's and the answers' tokens."""
SPREAD = 0.7
"""Standard deviation of the lengths' logarithms."""
PAIRS, LONGEST = 8, 1024
TOLERANCE = 2e-5
"""Of the losses: a random answer of 300 tokens has -3,300 nats, whose last bit in float32 is 1.2e-5 of the loss."""


def main() -> None:
    """Measure all trainers on both kinds of lengths, compare the losses, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="steps of each trainer; the first is a warm-up")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of a step")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all lengths, for a trial")
    parser.add_argument(
        "--lengths", choices=LENGTHS, nargs="+", default=list(LENGTHS), help="kinds to measure"
    )
    parser.add_argument("--one", nargs=2, metavar=("TRAINER", "LENGTHS"), help=argparse.SUPPRESS)
    options = with_model(parser)
    if options.one:
        name, kind = options.one
        print(json.dumps(train(name, LENGTHS[kind], options)))
        return
    given = [f"--{name}={getattr(options, name)}" for name in ("model", "steps", "pairs", "scale")]
    for kind in options.lengths:
        figures = {
            name: in_fresh_process("benchmarks.packing", "--one", name, kind, *given) for name in TRAINERS
        }
        show(kind, figures)
        require_equal(figures)
        if options.scale == 1:
            sizes = {"pairs": options.pairs, "steps": options.steps, "means": LENGTHS[kind], "spread": SPREAD}
            keep(kind, {"machine": machine("cpu"), **sizes, "figures": figures})


def keep(kind: str, measured: dict[str, Any]) -> None:
    """Write the figures of one kind of lengths beside those of the other."""
    path = RESULTS / "packing.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(kept | {kind: measured}, indent=1) + "\n")


def require_equal(figures: dict[str, dict[str, Any]]) -> None:
    """Exit with the largest gap if a trainer's losses differ from TRL's."""
    for name in TRAINERS[1:]:
        both = zip(figures["trl"]["losses"], figures[name]["losses"], strict=True)
        gap = max(abs(theirs - ours) for theirs, ours in both)
        if gap > TOLERANCE:
            raise SystemExit(
                f"{name}: the losses differ from TRL's by {gap:.1e}, expected at most {TOLERANCE:g}"
            )


def show(kind: str, figures: dict[str, dict[str, Any]]) -> None:
    """Print one line a trainer, with ratios to TRL's."""
    columns = ("trainer", "seconds a step", "x", "peak MB", "x", "last loss")
    table = Table(*columns, title=f"DPO step, LoRA, {kind} lengths {LENGTHS[kind]}")
    base = figures["trl"]
    for name, found in figures.items():
        ratios = (found[key] / base[key] for key in ("seconds", "peak_mb"))
        of_time, of_memory = (f"{ratio:.2f}" for ratio in ratios)
        seconds, peak = f"{found['seconds']:.2f}", f"{found['peak_mb']:.0f}"
        table.add_row(name, seconds, of_time, peak, of_memory, f"{found['losses'][-1]:.6f}")
    Console().print(table)


def pairs(count: int, means: tuple[int, int], words: int, scale: float) -> list[dict[str, list[int]]]:
    """`count` tokenised pairs of random ids below `words`, with log-normal lengths of these means."""
    ids = log_normal(words, scale)
    prompt, answer = means
    return [
        {"prompt_ids": ids(prompt), "chosen_ids": ids(answer), "rejected_ids": ids(answer)}
        for _ in range(count)
    ]


def log_normal(words: int, scale: float) -> Callable[[float], list[int]]:
    """A function (mean length) -> random ids below `words`, with a log-normal length of that mean times `scale`."""
    random.seed(0)

    def ids(mean: float) -> list[int]:
        length = random.lognormvariate(0, SPREAD) * mean * scale / 2.718281828 ** (SPREAD**2 / 2)
        return [random.randrange(words // 8, words) for _ in range(max(2, round(length)))]

    return ids


def train(name: str, means: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Run the steps of one trainer, in the fresh process."""
    from transformers import AutoConfig
    from trl import DPOConfig, DPOTrainer

    from alignkit.trainers import FDPOConfig, FDPOTrainer

    class TokenisedDPO(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    def pack(trainer: Any) -> None:
        if name == "packed":
            trainer.use_packing(wanted=True)

    trainer_of, config_of = (TokenisedDPO, DPOConfig) if name == "trl" else (FDPOTrainer, FDPOConfig)
    words = AutoConfig.from_pretrained(options.model).vocab_size
    settings = partial(
        config_of,
        per_device_train_batch_size=options.pairs,
        max_steps=options.steps,
        max_length=LONGEST,
        optim="sgd",  # Adam's first steps make of a gradient's last bits as much as of all the others
    )
    rows = pairs(options.steps * options.pairs, means, words, options.scale)
    return measured(trainer_of, settings, options.model, rows, pack)


if __name__ == "__main__":
    main()
