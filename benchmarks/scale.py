"""The tables of docs/scale.md: `python -m benchmarks.scale` prints them as Markdown. Nothing is run or loaded.

All of it is what `alignkit.estimate` makes of recipes: 2,048 tokens a sequence, half of them learned, one row a
forward, 1,024 rows a step, bfloat16, checkpointing, on H100s. In LoRA r = 16 on all linear layers.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from alignkit.estimate import STAGES, Estimate, compare, estimate, smallest
from alignkit.estimate.lengths import assumed
from alignkit.methods import METHODS
from alignkit.recipe import Recipe

DEVICE, ROWS, BATCH, LENGTH = "h100", 100_000, 1024, 2048
LENGTHS = assumed(LENGTH, ROWS)
SIZES = {"8 B": "llama-3.1-8b", "70 B": "llama-3.1-70b", "405 B": "llama-3.1-405b"}
TEACHERS = {"8 B": "llama-3.1-70b", "70 B": "llama-3.1-405b", "405 B": "llama-3.1-405b"}
USERS, ADAPTERS, JOBS_A_DAY, JOB_ROWS, JOB_TOKENS = 10_000, 100_000, 2_000, 2_000, 512


def main() -> None:
    """Print every table, or those named."""
    tables = {
        "needs": ("What it needs at the least", needs),
        "times": ("Where the time of a step goes, on 64", times),
        "drawing": ("Before D2O's first step, on 64", drawing),
        "scaling": ("Out to 1,024", scaling),
        "service": ("A service", service),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(tables)}; default: all")
    parser.add_argument("--size", choices=SIZES, help="this size alone")
    options = parser.parse_args()
    asked = options.tables
    if options.size:
        for other in [name for name in SIZES if name != options.size]:
            del SIZES[other]
    if unknown := set(asked) - set(tables):
        parser.error(f"expected tables of {', '.join(tables)}, found {', '.join(sorted(unknown))}")
    for name in asked or tables:
        title, lines = tables[name]
        print(f"\n### {title}\n")
        for line in lines():
            print(line, flush=True)


def recipe(size: str, method: str, *, lora: bool, **training: Any) -> Recipe:
    """All tables' recipe."""
    own: dict[str, Any] = {"type": method}
    options = METHODS[method].own_options()
    if "teacher" in options:
        own["teacher"] = {"path": TEACHERS[size]}
    if "teacher_lora" in options:
        own["teacher_lora"] = {"r": 16}
    return Recipe.parse(
        {
            "model": {"path": SIZES[size], "dtype": "bfloat16"},
            "data": {"train": "rows.jsonl", "max_length": LENGTH},
            "method": own,
            "lora": {"r": 16} if lora else None,
            "training": {
                "batch_size": BATCH,
                "micro_batch_size": 1,
                "gradient_checkpointing": True,
                "mixed_precision": "bf16",
                **training,
            },
            "output_dir": "runs/scale",
        }
    )


def needs() -> Iterator[str]:
    """The fewest devices and the stage, of every method and size."""
    yield f"| method | {' | '.join(f'{size}, LoRA | {size}, all weights' for size in SIZES)} |"
    yield "| --- |" + " --- |" * 2 * len(SIZES)
    for method in METHODS:
        cells = []
        for size in SIZES:
            for lora in (True, False):
                found = smallest(recipe(size, method, lora=lora), LENGTHS, device=DEVICE)
                cells.append("-" if found is None else f"{found.devices} x {found.stage}, {_gib(found)} GiB")
        yield f"| {method} | {' | '.join(cells)} |"


def times() -> Iterator[str]:
    """Shares of a step on 64 devices, each method at the stage that sends least of those that fit."""
    columns = (
        "method",
        "size",
        "trained",
        "stage",
        "step, s",
        "policy",
        "others",
        "heads",
        "optimizer",
        "sending, s",
    )
    yield f"| {' | '.join(columns)} |"
    yield "| --- " * len(columns) + "|"
    for size in SIZES:
        for method in METHODS:
            for lora in (True, False):
                found = _fastest(recipe(size, method, lora=lora), 64)
                if found is None:
                    yield f"| {method} | {size} | {_trained(lora)} | fits on none | | | | | | |"
                    continue
                seconds = found.step_seconds
                computing = dict(seconds.computing)
                policy, heads = computing.pop("policy"), computing.pop("heads")
                shares = [policy, sum(computing.values()), heads, seconds.optimizer]
                cells = " | ".join(f"{part / seconds.step:.0%}" for part in shares)
                yield (
                    f"| {method} | {size} | {_trained(lora)} | {found.stage} | {seconds.step:.1f} | {cells} "
                    f"| {seconds.communication:.1f} |"
                )


def drawing() -> Iterator[str]:
    """What D2O's samples and scores take once, on 64 devices."""
    yield "| size | drawing by the trainer, h | scoring, h | training, h |"
    yield "| --- | --- | --- | --- |"
    for size in SIZES:
        found = _fastest(recipe(size, "d2o", lora=True), 64)
        if found is None or found.steps is None:
            continue
        seconds = found.step_seconds
        hours = (seconds.drawing, seconds.scoring, found.steps * seconds.step)
        yield f"| {size} | {' | '.join(f'{part / 3600:.1f}' for part in hours)} |"


def scaling() -> Iterator[str]:
    """f-DPO with all weights under ZeRO-3, the batch fixed, one row a device and forward; 8 B with short rows too."""
    kinds = [*((size, LENGTH) for size in SIZES), ("8 B", LENGTH // 4)]
    columns = [f"{size}, {length:,} tokens: step, s | sending, s | efficiency" for size, length in kinds]
    yield f"| devices | {' | '.join(columns)} |"
    yield "| --- |" + " --- |" * 3 * len(kinds)
    first: dict[tuple[str, int], float] = {}
    for count in (8, 16, 32, 64, 128, 256, 512, 1024):
        cells = []
        for size, length in kinds:
            run, lengths = recipe(size, "f_dpo", lora=False), assumed(length, ROWS)
            found = estimate(run, lengths, device=DEVICE, count=count, stage="zero3")
            if not found.fits:
                cells.append("does not fit | | ")
                continue
            seconds = found.step_seconds
            work = first.setdefault((size, length), count * seconds.step)
            efficiency = work / count / seconds.step
            cells.append(f"{seconds.step:.2f} | {seconds.communication:.2f} | {efficiency:.0%}")
        yield f"| {count} | {' | '.join(cells)} |"


def service() -> Iterator[str]:
    """Adapters of an 8 B model for many users."""
    lengths = assumed(JOB_TOKENS, JOB_ROWS)
    job = recipe("8 B", "f_dpo", lora=True, batch_size=16, epochs=1)
    job = job.model_copy(update={"data": job.data.model_copy(update={"max_length": JOB_TOKENS})})
    found = estimate(job, lengths, device=DEVICE)
    adapter, weights = found.disk.result, found.memory.kinds["weights"]
    hours = (found.seconds or 0) / 3600
    free = found.device.usable - weights
    yield "| | |"
    yield "| --- | --- |"
    yield f"| an adapter | {adapter / 2**20:.0f} MiB |"
    yield f"| {ADAPTERS:,} of them | {ADAPTERS * adapter / 2**40:.1f} TiB |"
    yield f"| with a checkpoint each | {ADAPTERS * (adapter + found.disk.checkpoint) / 2**40:.1f} TiB |"
    yield f"| adapters in half of what the base leaves of an H100 | {free / 2 / adapter:,.0f} |"
    yield f"| a job of {JOB_ROWS:,} pairs of {JOB_TOKENS} tokens | {hours:.2f} GPU hours, {_gib(found)} GiB |"
    yield f"| {JOBS_A_DAY:,} such jobs a day, GPUs 60 % busy | {JOBS_A_DAY * hours / 24 / 0.6:.1f} GPUs |"


def _fastest(run: Recipe, count: int) -> Estimate | None:
    """The layout with the shortest step of those that fit."""
    fitting = [one for one in compare(run, LENGTHS, device=DEVICE, count=count) if one.fits]
    fitting = [one for one in fitting if not STAGES[one.stage].offload]
    return min(fitting, key=lambda one: one.step_seconds.step, default=None)


def _gib(found: Estimate) -> str:
    return f"{found.memory.peak / 2**30:.0f}"


def _trained(lora: bool) -> str:  # noqa: FBT001
    return "LoRA" if lora else "all"


if __name__ == "__main__":
    main()
