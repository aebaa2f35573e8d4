"""Chooses values for `auto` when a run starts; `alignkit.run.settled` stores them."""

import math
import os
from pathlib import Path
from typing import Any

import torch

from alignkit.data.dataset import load_rows, skipped_share
from alignkit.data.tokens import render_rows
from alignkit.estimate import EstimateError, lengths_of
from alignkit.estimate.devices import visible
from alignkit.estimate.fitting import fit, has_auto, without_estimate
from alignkit.hardware import has_amx
from alignkit.models.weights_digest import dropouts_of
from alignkit.precision import WORTHWHILE, Row, choose
from alignkit.recipe import Recipe
from alignkit.run.checkpoints import newest_first
from alignkit.run.evaluation_share import MOST_TOKENS, SHARE, Watching, steps_of
from alignkit.run.folder import RunFolder
from alignkit.run.reference_store import has_reference, worth_storing
from alignkit.run.settled import AUTO, SETTLED, keep, read_kept, with_kept
from alignkit.sharding import sharding

PROBE_ROWS = 4
PROBE_TOKENS = 512
STAGES = {None: None, "ZeRO-1": "zero1", "ZeRO-2": "zero2", "ZeRO-3": "zero3", "FSDP": "fsdp2"}
"""Kind of sharding -> the stage of an estimate."""


def settle(recipe: Recipe, folder: RunFolder, *, resume: bool, main: bool) -> Recipe:
    """Replace each `auto` of the recipe by the value of the run's earlier start, or by one for this device.

    `main`: whether this process writes the folder. Raises RecipeError if nothing fits. A `mixed_precision` that is to
    be measured stays `auto`.
    """
    kept = read_kept(folder) if resume else {}
    recipe = with_kept(recipe, kept)
    if resume and newest_first(folder.checkpoints):
        recipe = _as_before(recipe)
    if not has_auto(recipe):
        return recipe
    stage, count = STAGES[sharding()], int(os.environ.get("WORLD_SIZE", "1"))
    device = visible()
    try:
        found = fit(
            recipe,
            lengths_of(recipe, bounded=True),
            device=device,
            count=count,
            stages=[stage or ("single" if count == 1 else "ddp")],
        ).recipe
        note = ""
    except EstimateError as error:
        found, note = (
            without_estimate(recipe, processes=count, gpu=device.is_gpu),
            f"; not estimated: {error}",
        )
    if main:
        keep(found, folder)
        values = ", ".join(f"{name} {_shown(value)}" for name, value in _differing(recipe, found).items())
        folder.emit(f"Settled for {device.name}: {values}{note}", data=_differing(recipe, found))
    return found


def settle_precision(recipe: Recipe, model: Any, tokenizer: Any, folder: RunFolder, *, main: bool) -> Recipe:
    """Replace `mixed_precision: auto` by the fastest precision whose error of log-ratios is within the budget.

    One process measures for all. Sharded and quantised weights cannot be measured, and train in bfloat16.
    """
    if recipe.training.mixed_precision != AUTO:
        return recipe
    device = _device()
    if sharding() is not None or recipe.model.quantization is not None:
        way = "bf16" if device.type == "cuda" else "no"
        kind = "sharded" if sharding() else "quantised"
        sentence = f"Precision {way}: not measured, because the weights are {kind}"
    elif device.type == "cpu" and not (has_amx() and model.num_parameters() >= WORTHWHILE):
        way, sentence = "no", "Precision float32: 16 bits would not be faster on this device"
    else:
        rows = probe_rows(recipe, tokenizer)
        found = choose(model.to(device), rows, recipe.training.precision_budget, seed=recipe.seed)
        way, sentence = found.way, found.sentence(recipe.training.precision_budget)
    way = _agreed(way)
    training = recipe.training.model_copy(update={"mixed_precision": way})
    recipe = recipe.model_copy(update={"training": training})
    if main:
        keep(recipe, folder)
        print(sentence, flush=True)
        folder.emit(sentence, data={"mixed_precision": way})
    return recipe


def settle_references(recipe: Recipe, model: Any, rows: int, folder: RunFolder, *, main: bool) -> Recipe:
    """Decide whether the run stores the reference's log-probs; one that cannot says why and scores at every step.

    `rows` is the number of training rows.
    """
    given = recipe.training.reference_store
    wanted = worth_storing(recipe, rows) if given == AUTO else given == "on" and has_reference(recipe)
    why_not = _no_store(recipe, model) if wanted else None
    value = "on" if wanted and why_not is None else "off"
    recipe = _with_store(recipe, value)
    if main and value != given:
        keep(recipe, folder)
        if why_not is not None:
            folder.emit(f"The reference is scored at every step: {why_not}")
    return recipe


def settle_evaluations(
    recipe: Recipe, rows: int, held_out_rows: int, folder: RunFolder, *, main: bool
) -> Recipe:
    """Replace `auto` of the interval of evaluations and of the length of the guard's answers, by the run's length.

    Reports a run that keeps its best step or stops early but is evaluated only once.
    """
    training, guard, early = recipe.training, recipe.collapse_guard, recipe.training.early_stopping
    steps, an_epoch = steps_of(rows, training.batch_size, training.epochs, training.max_steps)
    prompts, tokens = (0, None) if guard is None else (guard.prompts, guard.max_new_tokens)
    fixed = None if tokens == "auto" else tokens
    watching = Watching(steps, training.batch_size, held_out_rows, prompts, fixed)
    interval = training.eval_steps
    if interval == "auto":
        patience = None if early is None else early.patience
        interval = watching.interval(an_epoch, patience) if held_out_rows else None
    evaluations = math.ceil(steps / interval) if interval else 1
    update: dict[str, Any] = {"training": training.model_copy(update={"eval_steps": interval})}
    if guard is not None:
        tokens = watching.guard_tokens(evaluations)
        update["collapse_guard"] = guard.model_copy(update={"max_new_tokens": tokens})
    found = recipe.model_copy(update=update)
    if main and found != recipe:
        keep(found, folder)
    measured = evaluations if held_out_rows else 0
    if not main or newest_first(folder.checkpoints):  # what follows was said when the run began
        return found
    if watching.share(max(1, measured)) > SHARE:  # without held-out rows the guard draws at the end
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.emit(_about_share(watching, measured))
    if evaluations == 1 < steps and held_out_rows and (early is not None or found.keeps_best):
        cannot = ", and early_stopping cannot act" if early is not None else ""
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.emit(
            f"The run is evaluated once, at its end, so that keep_best keeps the last step{cannot}; a smaller "
            "interval of evaluations compares more steps"
        )
    return found


def _about_share(watching: Watching, evaluations: int) -> str:
    """The sentence on a run that evaluates and guards for more than a tenth of its time."""
    parts = [f"{evaluations} evaluation{'s'[: evaluations > 1]}"] if evaluations else []
    parts += ["the collapse guard"] if watching.prompts else []
    share = watching.share(max(1, evaluations))
    return (
        f"About {share:.0%} of this run's time will go to {' and '.join(parts)}, by the number of rows: the longer a "
        "run, the smaller the share"
    )


def _as_before(recipe: Recipe) -> Recipe:
    """The recipe of a run that began before these options were settled, as it trained then."""
    guard = recipe.collapse_guard
    if guard is not None and guard.max_new_tokens == AUTO:
        guard = guard.model_copy(update={"max_new_tokens": MOST_TOKENS})
        recipe = recipe.model_copy(update={"collapse_guard": guard})
    return _with_store(recipe, "off") if recipe.training.reference_store == AUTO else recipe


def _no_store(recipe: Recipe, model: Any) -> str | None:
    """Why the reference's log-probs of this run cannot be computed before its first step; None if they can."""
    if sharding() is not None:
        return f"{sharding()} shards the weights, which then run only inside training"
    if dropouts := dropouts_of(model):
        return f"it has dropout ({', '.join(dropouts[:3])}), so no two of its log-probs are equal"
    if recipe.model.quantization == "int8":
        return "int8 rounds a row's activations by the rows beside it, so its log-probs depend on the batch"
    return None


def _with_store(recipe: Recipe, value: str) -> Recipe:
    training = recipe.training.model_copy(update={"reference_store": value})
    return recipe.model_copy(update={"training": training})


def probe_rows(recipe: Recipe, tokenizer: Any) -> list[Row]:
    """The longest sequence of each of the first rows with a token that carries loss, cut to PROBE_TOKENS."""
    data = recipe.data
    found: list[Row] = []
    rows = load_rows(
        Path(data.train), type(recipe.method), columns=data.columns, skip_bad=skipped_share(data.skip_bad)
    )
    for sequences in render_rows(rows[: 8 * PROBE_ROWS], tokenizer, lambda row, by: row.render(by)):
        longest = max(sequences, key=lambda sequence: len(sequence.ids))
        most = min(PROBE_TOKENS, data.max_length)
        spans = [(start, min(end, most)) for start, end in longest.loss_spans if start < most]
        if spans and len(found) < PROBE_ROWS:
            found.append((longest.ids[:most], spans))
    return found


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _agreed(way: str) -> str:
    """Rank 0's choice, on every rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return way
    from accelerate import PartialState  # saves accelerate if nothing is measured
    from accelerate.utils import broadcast_object_list

    PartialState()
    return str(broadcast_object_list([way])[0])


def _differing(recipe: Recipe, found: Recipe) -> dict[str, Any]:
    return {
        name: getattr(getattr(found, section), name)
        for section, names in SETTLED.items()
        for name in names
        if getattr(getattr(recipe, section), name, None) != getattr(getattr(found, section), name, None)
    }


def _shown(value: Any) -> str:
    return {True: "on", False: "off", None: "the model's own"}.get(value, str(value))
