"""A whole DPO training step of SmolLM2-135M under LoRA, FDPOTrainer against TRL's DPOTrainer.

`python -m benchmarks.training_step [--model FOLDER] [--steps N]`: the same pairs, seed and settings (TRL's defaults,
gradient checkpointing included), each trainer in a fresh process; losses must agree to 1e-5. Prints seconds a step
and peak memory over the loaded model, and writes results/training-step.json.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.heads import RESULTS, machine
from benchmarks.measure import OnCpu, in_fresh_process

MODEL = Path(".alignkit/models/smollm2-135m-instruct")
PAIRS, TOKENS = 4, 512
TRAINERS = ("trl", "alignkit")
WORDS = "the of and to in is that it was for on are as with they be at one have this from or had by".split()  # noqa: SIM905


def main() -> None:
    """Measure both, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="the first is a warm-up")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of prompt and answer together")
    parser.add_argument("--one", choices=TRAINERS, help=argparse.SUPPRESS)
    options = with_model(parser)
    if options.one:
        print(json.dumps(train(options.one, options.model, options.steps, options.tokens)))
        return
    sizes = ["--model", str(options.model), "--steps", str(options.steps), "--tokens", str(options.tokens)]
    figures = {name: in_fresh_process("benchmarks.training_step", "--one", name, *sizes) for name in TRAINERS}
    show(figures)
    gaps = [abs(a - b) for a, b in zip(figures["trl"]["losses"], figures["alignkit"]["losses"], strict=True)]
    if max(gaps) > 1e-5:
        raise SystemExit(f"the losses differ by {max(gaps):.1e}, expected at most 1e-5")
    if options.tokens == TOKENS:
        RESULTS.mkdir(exist_ok=True)
        result = {"machine": machine("cpu"), "pairs": PAIRS, "tokens": options.tokens, "figures": figures}
        (RESULTS / "training-step.json").write_text(json.dumps(result, indent=1) + "\n")


def with_model(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with --model, which must be the folder of a model."""
    parser.add_argument("--model", type=Path, default=MODEL, help=f"folder of a model; default: {MODEL}")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        parser.error(
            f"{options.model} holds no model: alignkit models import smollm2-135m-instruct, or --model"
        )
    return options


def show(figures: dict[str, dict[str, Any]]) -> None:
    """One line a trainer, with ratios to TRL's."""
    table = Table("trainer", "seconds a step", "x", "peak MB", "x", "losses", title="DPO step, LoRA")
    base = figures["trl"]
    for name, found in figures.items():
        table.add_row(
            name,
            f"{found['seconds']:.2f}",
            f"{found['seconds'] / base['seconds']:.2f}",
            f"{found['peak_mb']:.0f}",
            f"{found['peak_mb'] / base['peak_mb']:.2f}",
            " ".join(f"{loss:.6f}" for loss in found["losses"]),
        )
    Console().print(table)


def train(name: str, model: Path, steps: int, tokens: int) -> dict[str, Any]:
    """In the fresh process: `steps` steps of one trainer."""
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from alignkit.trainers import FDPOConfig, FDPOTrainer

    trainer_of, config_of = {"trl": (DPOTrainer, DPOConfig), "alignkit": (FDPOTrainer, FDPOConfig)}[name]
    rows = pairs(steps * PAIRS, tokens, AutoTokenizer.from_pretrained(model))
    return measured(
        trainer_of,
        partial(config_of, per_device_train_batch_size=PAIRS, max_steps=steps, max_length=tokens),
        model,
        rows,
    )


def measured(
    trainer_of: Any,
    config_of: Callable[..., Any],
    model: Path,
    rows: list[dict[str, Any]],
    begin: Callable[[Any], object] = lambda _: None,
) -> dict[str, Any]:
    """Train LoRA on the CPU: median seconds of the steps after the first, peak MB over the loaded model, losses.

    `config_of` gets the arguments that all benchmarks share. `begin` gets the trainer before it trains.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Clock(TrainerCallback):
        seconds: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(
            output_dir=folder,
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            seed=0,
        )
        trainer = trainer_of(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=config,
            processing_class=AutoTokenizer.from_pretrained(model),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        begin(trainer)
        memory = OnCpu()
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": statistics.median(Clock.seconds[1:]),
        "peak_mb": (memory.peak() - memory.base) / 2**20,
        "losses": losses,
    }


def pairs(count: int, tokens: int, tokenizer: Any) -> list[dict[str, str]]:
    """Prompts of half the tokens; answers long enough to be cut to the other half."""
    chance = random.Random(0)

    def words(length: int) -> str:
        ids = tokenizer(" ".join(chance.choices(WORDS, k=tokens)), add_special_tokens=False)["input_ids"]
        return tokenizer.decode(ids[:length])

    return [
        {"prompt": words(tokens // 2), "chosen": words(tokens), "rejected": words(tokens)}
        for _ in range(count)
    ]


if __name__ == "__main__":
    main()
