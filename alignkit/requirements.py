"""What a recipe asks of the machine and of the launcher, checked before anything is loaded.

Each check looks at one part and gives the fields that cannot be had here, with what can.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from alignkit.errors import FieldIssue, RecipeError
from alignkit.extras import missing

if TYPE_CHECKING:
    from alignkit.recipe import Recipe

ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers whose step of a weight depends on that weight's gradients alone, so that a part of a matrix can be
stepped without the rest. ZeRO would take the others too, and train something else."""

SHARES_WEIGHTS = frozenset({"ZeRO-3", "FSDP"})
"""Under which no process has a weight whole."""

_IN_BITSANDBYTES = ("8bit", "bnb", "paged", "lion")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


class Online(Protocol):
    """What of D2O's section, or of its trainer's configuration, happens in the middle of a run."""

    resample_every: int | None
    ref_refresh_every: int | None
    sampler_url: str | None


def require(recipe: "Recipe") -> None:
    """Raise RecipeError, naming every field, unless this process can run the recipe as it was launched."""
    issues = [issue for check in CHECKS for issue in check(recipe)]
    if issues:
        raise RecipeError(issues)


def sharding() -> str | None:
    """`ZeRO-1` to `ZeRO-3` or `FSDP`, as accelerate's launcher tells its processes; None where nothing is sharded."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    return "FSDP" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None


def refused_under(sharded: str | None, recipe: "Recipe") -> Iterator[FieldIssue]:
    """What cannot be trained under `sharded`, which is named as `sharding` does."""
    if sharded is None:
        return
    optimizer, method = recipe.training.optimizer, recipe.method
    if optimizer not in ELEMENTWISE:
        yield FieldIssue(
            "training.optimizer",
            f"{sharded} shards only what steps each weight alone, {', '.join(ELEMENTWISE)}: found {optimizer}",
        )
    if recipe.model.quantization is not None and sharded in SHARES_WEIGHTS:
        yield FieldIssue(
            "model.quantization", f"expected ddp, zero1 or zero2 with quantised weights, found {sharded}"
        )
    if method.type == "d2o":
        yield from refused_online(sharded, method)


def refused_online(sharded: str | None, options: Online) -> Iterator[FieldIssue]:
    """What D2O cannot do in the middle of a run under `sharded`."""
    if options.resample_every and not options.sampler_url and sharded in SHARES_WEIGHTS:
        yield FieldIssue(
            "method.resample_every",
            f"expected a sampler_url, or ddp, zero1 or zero2, to draw from the policy with, found {sharded}",
        )
    if options.ref_refresh_every and sharded == "FSDP":
        yield FieldIssue(
            "method.ref_refresh_every",
            "expected ddp or ZeRO, found FSDP, under which no process can copy the policy",
        )


def _devices(_recipe: "Recipe") -> Iterator[FieldIssue]:
    import torch

    wanted, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if torch.cuda.is_available() and wanted > found:
        yield FieldIssue(
            "", f"expected a GPU for each of the {wanted} processes of this machine, found {found}"
        )


def _precision(recipe: "Recipe") -> Iterator[FieldIssue]:
    import torch

    field, wanted = "training.mixed_precision", recipe.training.mixed_precision
    if wanted == "fp16" and not torch.cuda.is_available():
        yield FieldIssue(field, "fp16 needs a GPU, and there is none: expected bf16 or no")
    if wanted == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        yield FieldIssue(field, f"{torch.cuda.get_device_name()} has no bf16: expected fp16 or no")


def _attention(recipe: "Recipe") -> Iterator[FieldIssue]:
    import torch

    field, wanted = "model.attn_implementation", recipe.model.attn_implementation
    if wanted is None:
        return
    if wanted not in _ATTENTION:
        yield FieldIssue(field, f"expected one of {', '.join(_ATTENTION)}, found {wanted!r}")
        return
    if wanted not in {"eager", "sdpa"} and not torch.cuda.is_available():
        yield FieldIssue(field, f"{wanted} needs a GPU, and there is none: expected eager or sdpa")
    package = _FLASH.get(wanted)
    if package and not _installed(package):
        yield FieldIssue(field, f"{wanted} needs the package {package}, which is not installed")


def _optimizer(recipe: "Recipe") -> Iterator[FieldIssue]:
    from transformers.training_args import OptimizerNames

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


def _quantization(recipe: "Recipe") -> Iterator[FieldIssue]:
    field, wanted = "model.quantization", recipe.model.quantization
    if wanted is None:
        return
    if not _bitsandbytes():
        yield FieldIssue(
            field,
            missing("bitsandbytes", extra="quantized", purpose=wanted),
        )


def _sampler(recipe: "Recipe") -> Iterator[FieldIssue]:
    """The server must draw from the model that the run begins with, and that is not what it calls its base."""
    method = recipe.method
    if method.type == "d2o" and method.sampler_url and recipe.model.adapter and not method.sampler_model:
        yield FieldIssue(
            "method.sampler_model", "is required with model.adapter: the name that the server has for it"
        )


def _sharded(recipe: "Recipe") -> Iterator[FieldIssue]:
    yield from refused_under(sharding(), recipe)


def _bitsandbytes() -> bool:
    return _installed("bitsandbytes")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


CHECKS: tuple[Callable[["Recipe"], Iterator[FieldIssue]], ...] = (
    _devices,
    _precision,
    _attention,
    _optimizer,
    _quantization,
    _sampler,
    _sharded,
)
