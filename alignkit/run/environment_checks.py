"""Checks of a recipe's requirements on the machine and the launcher, before anything is loaded.

Each check covers one part, and yields the fields that are not possible here together with what is.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from alignkit.errors import FieldIssue, ModelError, RecipeError
from alignkit.extras import missing
from alignkit.models.chat_templates import read_template
from alignkit.models.loading import QUANTIZATIONS
from alignkit.models.trainable import config_of, length_within, require_trainable
from alignkit.recipe import Recipe
from alignkit.run.layer_checks import layer_issues
from alignkit.sharding import SHARES_WEIGHTS, sharding
from alignkit.terms.base import UNSHARDED

ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers that update each weight from that weight's gradients alone.

Only these can update a part of a matrix without the rest. ZeRO would accept the others, and train something else.
"""

_IN_BITSANDBYTES = ("8bit", "bnb", "paged", "lion")
_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def require(recipe: Recipe) -> None:
    """Raise RecipeError that names every field, unless this process can run the recipe as launched."""
    issues = [issue for check in CHECKS for issue in check(recipe)]
    if issues:
        raise RecipeError(issues)


def refused_under(sharded: str | None, recipe: Recipe) -> Iterator[FieldIssue]:
    """The options that are not possible under `sharded`, a result of `alignkit.sharding.sharding`."""
    yield from recipe.method.refusals(recipe, sharded)
    if sharded is None:
        return
    optimizer = recipe.training.optimizer
    if optimizer not in ELEMENTWISE:
        yield FieldIssue(
            "training.optimizer",
            f"{optimizer} cannot be sharded under {sharded}; expected one of {', '.join(ELEMENTWISE)}",
        )
    if recipe.after and sharded in SHARES_WEIGHTS:
        yield FieldIssue(
            "after",
            f"no process holds a weight whole under {sharded}; expected ddp, zero1 or zero2, or "
            "`alignkit interpolate` on the finished run",
        )
    if recipe.training.gradient == "orthogonal":
        yield FieldIssue(
            "training.gradient",
            f"orthogonal needs whole matrices, which the flat shards of {sharded} are not; expected plain, or one "
            "process or ddp",
        )
    yield from _needs_whole_weights(sharded, recipe)
    if sharded in SHARES_WEIGHTS:
        for at, term in enumerate(recipe.terms):
            if term.effect == "parameters":
                yield FieldIssue(f"terms.{at}.type", f"{UNSHARDED.format(term.type)}, found {sharded}")
    if recipe.training.torch_compile and sharded in SHARES_WEIGHTS:
        yield FieldIssue(
            "training.torch_compile",
            f"compiled layers do not wait for their weights: expected ddp, zero1 or zero2, found {sharded}",
        )
    if recipe.model.quantization is not None and sharded in SHARES_WEIGHTS:
        yield FieldIssue(
            "model.quantization", f"expected ddp, zero1 or zero2 with quantised weights, found {sharded}"
        )


def _needs_whole_weights(sharded: str, recipe: Recipe) -> Iterator[FieldIssue]:
    """The sections that are not possible where processes share weights or gradients."""
    if recipe.elastic is not None and sharded in SHARES_WEIGHTS:
        yield FieldIssue(
            "elastic",
            f"noise needs whole weights in each process: expected ddp, zero1 or zero2, found {sharded}",
        )
    if recipe.tune is not None:
        yield FieldIssue(
            "tune", f"tuning needs whole weights and gradients: expected one process or ddp, found {sharded}"
        )


def _model(recipe: Recipe) -> Iterator[FieldIssue]:
    """Check the configuration of a model in a folder; a model on the hub is checked when it is loaded."""
    folder = Path(recipe.model.path)
    if (folder / "config.json").is_file():
        try:
            require_trainable(config_of(folder), all_weights=recipe.lora is None)
        except ModelError as error:
            yield FieldIssue("model.path", f"{folder}: {error}")


def settle_length(recipe: Recipe) -> Recipe:
    """The recipe, with its default `data.max_length` lowered to the positions of its model.

    Raises RecipeError if the recipe sets more than that.
    """
    data = recipe.data
    # a resolved recipe has its defaults written out
    asked = None if data.max_length == type(data).model_fields["max_length"].default else data.max_length
    try:
        length = length_within(Path(recipe.model.path), asked, data.max_length)
    except ValueError as error:
        raise RecipeError([FieldIssue("data.max_length", str(error))]) from error
    if length == data.max_length:
        return recipe
    return recipe.model_copy(update={"data": data.model_copy(update={"max_length": length})})


def _chat_template(recipe: Recipe) -> Iterator[FieldIssue]:
    if recipe.model.chat_template is not None:
        try:
            read_template(recipe.model.chat_template)
        except ModelError as error:
            yield FieldIssue("model.chat_template", str(error))


def _devices(_recipe: Recipe) -> Iterator[FieldIssue]:
    wanted, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if torch.cuda.is_available() and wanted > found:
        yield FieldIssue(
            "", f"expected a GPU for each of the {wanted} processes on this machine, found {found}"
        )


def _precision(recipe: Recipe) -> Iterator[FieldIssue]:

    field, wanted = "training.mixed_precision", recipe.training.mixed_precision
    if wanted in {"fp16", "tf32"} and not torch.cuda.is_available():
        yield FieldIssue(field, f"{wanted} needs a GPU, but this machine has none: expected bf16 or no")
    if wanted == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        yield FieldIssue(field, f"{torch.cuda.get_device_name()} does not support bf16: expected fp16 or no")


def _attention(recipe: Recipe) -> Iterator[FieldIssue]:

    field, wanted = "model.attn_implementation", recipe.model.attn_implementation
    if wanted in {None, "auto"}:
        return
    if wanted not in {"eager", "sdpa"} and not torch.cuda.is_available():
        yield FieldIssue(field, f"{wanted} needs a GPU, but this machine has none: expected eager or sdpa")
    package = _FLASH.get(str(wanted))
    if package and not _installed(package):
        yield FieldIssue(field, f"{wanted} needs the package {package}, which is not installed")


def _layers(recipe: Recipe) -> Iterator[FieldIssue]:
    yield from layer_issues(recipe, gpu=torch.cuda.is_available())


def _optimizer(recipe: Recipe) -> Iterator[FieldIssue]:
    from transformers.training_args import OptimizerNames  # saves transformers at start-up

    field, wanted = "training.optimizer", recipe.training.optimizer
    names = [name.value for name in OptimizerNames]
    if wanted not in names:
        yield FieldIssue(field, f"expected one of {', '.join(names)}, found {wanted!r}")
        return
    if any(part in wanted for part in _IN_BITSANDBYTES) and "torch" not in wanted and not _bitsandbytes():
        yield FieldIssue(
            field,
            missing("bitsandbytes", extra="quantized", purpose=wanted),
        )


def _quantization(recipe: Recipe) -> Iterator[FieldIssue]:
    field, wanted = "model.quantization", recipe.model.quantization
    if wanted is None:
        return
    if not _bitsandbytes():
        yield FieldIssue(
            field,
            missing("bitsandbytes", extra="quantized", purpose=wanted),
        )


def _elastic(recipe: Recipe) -> Iterator[FieldIssue]:
    formats = [] if recipe.elastic is None else recipe.elastic.formats
    if (named := [name for name in formats if name in QUANTIZATIONS]) and not _bitsandbytes():
        yield FieldIssue("elastic", missing("bitsandbytes", extra="quantized", purpose=", ".join(named)))


def _sharded(recipe: Recipe) -> Iterator[FieldIssue]:
    yield from refused_under(sharding(), recipe)


def _bitsandbytes() -> bool:
    return _installed("bitsandbytes")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


CHECKS: tuple[Callable[[Recipe], Iterator[FieldIssue]], ...] = (
    _model,
    _chat_template,
    _devices,
    _precision,
    _attention,
    _layers,
    _optimizer,
    _quantization,
    _elastic,
    _sharded,
)
