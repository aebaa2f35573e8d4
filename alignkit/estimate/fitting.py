"""Chooses settings that fit a device: values for the options set to `auto`, or the smallest change that makes it fit.

    fitted = fit(recipe, lengths, device="l4")
    fitted.recipe.training.micro_batch_size, fitted.estimate.memory.peak

The batch of a step stays the same: rows that do not fit into one forward follow in further ones, and the result of a
step does not depend on the split. If the micro-batch is part of the method, it is not changed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from alignkit.errors import FieldIssue, RecipeError
from alignkit.estimate import devices, sharding
from alignkit.estimate.devices import Device
from alignkit.estimate.estimating import Estimate, Estimating, presumed
from alignkit.estimate.lengths import Lengths
from alignkit.estimate.memory import FLOAT
from alignkit.estimate.shapes import configuration
from alignkit.hardware import has_amx
from alignkit.kernels.costs import HeadSize
from alignkit.methods.work import Batch, ModelUse
from alignkit.recipe import Recipe
from alignkit.sections import loaded_dtype

AUTO = "auto"
FULL_FORWARD = {False: 2048, True: 8192}
"""Tokens of a forward that keep a CPU and a GPU busy; more rows at once only add padding."""
EVALUATION_ROWS = (32, 16, 8, 4, 2, 1)
EASY_SHARE = 4
"""A run is not traced if a generous bound on its memory is below the device's memory divided by this."""
EASY_NUMBERS = 100
"""Bound on the activations kept per token and layer: float32 values per unit of the hidden size."""
EASY_WEIGHT_BYTES = 20
"""Bound on the bytes per parameter: weight, gradient, optimizer state and a reference."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Fitted:
    """A recipe that fits, and its estimate."""

    recipe: Recipe
    """Without `auto`, except a `mixed_precision` that the run will measure."""
    estimate: Estimate | None
    """None if a bound on its memory was small enough to skip the estimate."""


def has_auto(recipe: Recipe) -> bool:
    """Whether an option that this module chooses is set to `auto`."""
    return AUTO in {recipe.model.dtype, recipe.model.attn_implementation} or AUTO in {
        recipe.training.micro_batch_size,
        recipe.training.gradient_checkpointing,
        recipe.training.eval_batch_size,
    }


def fit(
    recipe: Recipe,
    lengths: Lengths,
    *,
    device: str | Device = devices.CPU,
    count: int = 1,
    stages: Sequence[str] | None = None,
) -> Fitted:
    """Choose values for `auto` on `count` devices, under the first of `stages` that fits.

    Default stages: those that can train the recipe, without offloading. Raises RecipeError if nothing fits, with the
    smallest change that would fit, and EstimateError for a model that cannot be estimated.
    """
    target = devices.get(device)
    if count == 1 and (easy := _easy(recipe, lengths, target)) is not None:
        return Fitted(easy, None)
    found = _fitting(recipe, lengths, target, count, stages)
    if found is None:
        raise RecipeError([_refusal(recipe, lengths, target, count, stages)])
    return found


def without_estimate(recipe: Recipe, *, gpu: bool, processes: int = 1) -> Recipe:
    """Choose values for `auto` from the kind of device alone, for a model that cannot be estimated.

    The micro-batch has at most a quarter of `FULL_FORWARD` tokens, or is one row. A GPU gets checkpointing.
    """
    rows = max(1, FULL_FORWARD[gpu] // 4 // recipe.data.max_length)
    share = max(1, recipe.training.batch_size // processes)
    micro = max(size for size in range(1, share + 1) if share % size == 0 and size <= rows)
    return _settled(
        recipe,
        gpu=gpu,
        micro=None if recipe.micro_batch_matters else micro,
        checkpointing=gpu,
        evaluation=8,
    )


def _easy(recipe: Recipe, lengths: Lengths, device: Device) -> Recipe | None:
    """The settings without gradient checkpointing if a bound shows that they fit, else None.

    This saves the seconds of tracing for a small model on a large device.
    """
    plan = recipe.method.plan(presumed(recipe, gpu=device.is_gpu, rows=lengths.rows))
    sizes = {role: _size(use) for role, use in plan.models.items()}
    if plan.micro_batch_matters or not all(sizes.values()):
        return None
    given, full = recipe.training.micro_batch_size, FULL_FORWARD[device.is_gpu]
    micro = given if isinstance(given, int) else _busy_micro_batch(recipe, lengths, full)
    evaluation = _busy_rows(recipe, lengths, full)
    heads = {
        role: HeadSize(size.hidden, size.vocabulary, FLOAT, has_gradient=True, trains=False)
        for role, size in sizes.items()
        if size
    }
    rows = max(micro, evaluation)
    longest, learned, prompt = lengths.longest, lengths.longest_loss_tokens, lengths.longest_prompt
    batch = Batch(rows, longest, learned, prompt, lengths.sequences, heads, gpu=device.is_gpu)
    tokens = sum(step.sequences * step.length for step in plan.work(batch).passes)
    kept = sum(
        size.layers * (EASY_NUMBERS * size.hidden + size.attention_width * longest / 4)
        for size in sizes.values()
        if size
    )
    parameters = sum(size.parameters for size in sizes.values() if size)
    if (FLOAT * kept * tokens + EASY_WEIGHT_BYTES * parameters) * EASY_SHARE > device.usable:
        return None
    return _settled(recipe, gpu=device.is_gpu, micro=micro, checkpointing=False, evaluation=evaluation)


class _Size(NamedTuple):
    """Sizes from a model's configuration; `parameters` is an upper bound."""

    layers: int
    hidden: int
    attention_width: int
    vocabulary: int
    parameters: int


def _size(use: ModelUse) -> _Size | None:
    """The sizes from the configuration alone; None if it has other names for them."""
    config = configuration(use)[0].get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "intermediate_size")
    found = [getattr(config, name, None) for name in names]
    if not all(isinstance(value, int) for value in found):
        return None
    layers, hidden, heads, vocabulary, intermediate = map(int, found)  # type: ignore[arg-type]
    width = max(hidden, heads * (getattr(config, "head_dim", None) or 0))
    return _Size(
        layers,
        hidden,
        width,
        vocabulary,
        2 * vocabulary * hidden + layers * hidden * (4 * width + 3 * intermediate),
    )


def _busy_micro_batch(recipe: Recipe, lengths: Lengths, full: int) -> int:
    """The smallest micro-batch with at least `full` tokens, or the whole batch."""
    batch, row = recipe.training.batch_size, lengths.sequences * lengths.mean
    sizes = (size for size in range(1, batch + 1) if batch % size == 0)
    return next((size for size in sizes if size * row >= full), batch)


def _busy_rows(recipe: Recipe, lengths: Lengths, full: int) -> int:
    """Held-out rows per forward: the recipe's, or as many as keep the device busy."""
    if recipe.training.eval_batch_size != AUTO:
        return int(recipe.training.eval_batch_size)
    most = full / max(1.0, lengths.sequences * lengths.mean)
    return next((rows for rows in EVALUATION_ROWS if rows <= most), 1)


def _fitting(
    recipe: Recipe, lengths: Lengths, device: Device, count: int, stages: Sequence[str] | None
) -> Fitted | None:
    """The best setting under the first stage that fits; None if none does."""
    lengths = lengths.cut(recipe.data.max_length)
    for stage in _stages(recipe, lengths, device, count, stages):
        found = _on_stage(recipe, lengths, device, count, stage)
        if found is not None:
            return found
    return None


def _on_stage(
    recipe: Recipe, lengths: Lengths, device: Device, count: int, stage: sharding.Stage
) -> Fitted | None:
    """The best setting under a stage; None if none fits.

    Gradient checkpointing costs a third more computing, so it is used only if less than a quarter of a full forward
    fits without it.
    """
    full = FULL_FORWARD[device.is_gpu]
    asked = recipe.training.gradient_checkpointing
    best: Estimate | None = None
    for checkpointing in (False, True) if asked == AUTO else (bool(asked),):
        trial = _changed(recipe, training={"gradient_checkpointing": checkpointing})
        found = Estimating(trial, lengths, device).largest(stage, count, full)
        if found is None:
            continue
        if best is None or found.micro_batch_size > best.micro_batch_size:
            best, chosen = found, trial
        if found.micro_batch_size * lengths.sequences * lengths.mean >= full / 4 or _is_whole(found, recipe):
            break
    if best is None:
        return None
    given = recipe.training.micro_batch_size
    settled = _settled(
        chosen,
        gpu=device.is_gpu,
        micro=given if isinstance(given, int) else best.micro_batch_size,
        checkpointing=bool(chosen.training.gradient_checkpointing),
        evaluation=_evaluation_rows(chosen, lengths, device, stage, best),
    )
    return Fitted(settled, best)


def _is_whole(found: Estimate, recipe: Recipe) -> bool:
    """Whether one forward holds all rows that a process has in a step."""
    return found.micro_batch_size * found.devices == recipe.training.batch_size


def _evaluation_rows(
    recipe: Recipe, lengths: Lengths, device: Device, stage: sharding.Stage, found: Estimate
) -> int:
    """The most held-out rows that fit into a forward, but no more than keep the device busy, or than a step's has."""
    busy = _busy_rows(recipe, lengths, FULL_FORWARD[device.is_gpu])
    if recipe.training.eval_batch_size != AUTO or recipe.data.validation is None:
        return busy
    for rows in EVALUATION_ROWS:
        trial = _changed(recipe, training={"eval_batch_size": rows})
        estimating = Estimating(trial, lengths, device)
        if (
            rows <= min(busy, found.micro_batch_size)
            and estimating.on(stage, found.devices, found.micro_batch_size).fits
        ):
            return rows
    return 1


def _settled(recipe: Recipe, *, gpu: bool, micro: int | None, checkpointing: bool, evaluation: int) -> Recipe:
    """The recipe with every `auto` replaced by these values.

    An evaluation's forward gets no more rows than a step's, so that a smaller micro-batch helps both.
    """
    model, training = recipe.model, recipe.training
    step = training.micro_batch_size if isinstance(training.micro_batch_size, int) else micro
    values: dict[str, Any] = {
        "micro_batch_size": micro,
        "gradient_checkpointing": checkpointing,
        "eval_batch_size": min(evaluation, step or evaluation),
    }
    if not (gpu or has_amx()):
        values["mixed_precision"] = "no"
    own = {"dtype": loaded_dtype(gpu=gpu, frozen=recipe.lora is not None), "attn_implementation": None}
    return _changed(
        recipe,
        model={name: value for name, value in own.items() if getattr(model, name) == AUTO},
        training={name: value for name, value in values.items() if getattr(training, name) == AUTO},
    )


def _changed(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    """A copy with options of its sections replaced."""
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=values) for name, values in sections.items()}
    )


def _refusal(
    recipe: Recipe, lengths: Lengths, device: Device, count: int, stages: Sequence[str] | None
) -> FieldIssue:
    """The missing memory, and the first of `_changes` that makes it fit, alone or together with those before it."""
    least = _least(recipe, lengths, device, count, stages)
    where = f"{count} x {device.name}" if count > 1 else device.name
    has = f"{device.usable / GIB:.1f} GiB that {where} has for training"
    needs = f"does not fit: one process takes at least {least / GIB:.1f} GiB of the {has}"
    changes = [(words, change) for words, field, change in _changes() if field(recipe)]
    for words, change in changes:
        if _fitting(change(recipe), lengths, device, count, stages) is not None:
            return FieldIssue("training.micro_batch_size", f"{needs}; it fits with {words}")
    together, changed = [], recipe
    for words, change in changes:
        together.append(words)
        changed = change(changed)
        if _fitting(changed, lengths, device, count, stages) is not None:
            return FieldIssue("training.micro_batch_size", f"{needs}; it fits with {' and '.join(together)}")
    return FieldIssue(
        "training.micro_batch_size", f"{needs}; no change of its settings makes it fit: use more devices"
    )


def _least(recipe: Recipe, lengths: Lengths, device: Device, count: int, stages: Sequence[str] | None) -> int:
    """The lowest peak over the stages, with the smallest micro-batch that the recipe allows."""
    estimating = Estimating(recipe, lengths, device)
    return min(
        estimating.smallest_peak(stage, count) for stage in _stages(recipe, lengths, device, count, stages)
    )


def _stages(
    recipe: Recipe, lengths: Lengths, device: Device, count: int, names: Sequence[str] | None
) -> list[sharding.Stage]:
    """The named stages that can train the recipe; without names, all that do not offload."""
    possible = Estimating(recipe, lengths, device).stages(count)
    if names is None:
        return [stage for stage in possible if not stage.offload]
    return [stage for stage in possible if stage.name in names] or [sharding.get(name) for name in names]


def _changes() -> Iterator[tuple[str, Callable[[Recipe], bool], Callable[[Recipe], Recipe]]]:
    """(words, whether it would change the recipe, the change), from free ones to those that cost quality."""
    yield (
        "micro_batch_size auto",
        lambda recipe: recipe.training.micro_batch_size != AUTO and not recipe.micro_batch_matters,
        lambda recipe: _changed(recipe, training={"micro_batch_size": AUTO}),
    )
    yield (
        "gradient_checkpointing true",
        lambda recipe: recipe.training.gradient_checkpointing is False,
        lambda recipe: _changed(recipe, training={"gradient_checkpointing": True}),
    )
    yield (
        "dtype bfloat16",
        lambda recipe: recipe.model.dtype == "float32" and recipe.lora is not None,
        lambda recipe: _changed(recipe, model={"dtype": "bfloat16"}),
    )
    yield (
        "max_length halved",
        lambda recipe: recipe.data.max_length >= 512,
        lambda recipe: _changed(recipe, data={"max_length": recipe.data.max_length // 2}),
    )
    yield (
        "quantization nf4",
        lambda recipe: recipe.lora is not None and recipe.model.quantization is None,
        lambda recipe: _changed(recipe, model={"quantization": "nf4"}),
    )
