"""Tells which run wrote a checkpoint, and whether another run may resume from it.

A checkpoint's manifest records its origin: its format, the processes that wrote it and what each held, and all parts
of the recipe that the rest of the run depends on. Options that may change between two starts are excluded.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from alignkit.options import CONTENT_MATTERS, MAY_CHANGE, walk
from alignkit.recipe import Recipe
from alignkit.run.checkpoints import FORMAT

_DIGEST = re.compile("[0-9a-f]{64}")
_WEIGHTS = ("*.safetensors", "*.bin")
_BLOCKS, _BLOCK_BYTES = 64, 4096
"""Samples read of each weights file: another training of a model of the same shape differs everywhere."""

RESHARDED = ("whole", "fsdp2")
"""Shardings whose checkpoints hold whole weights and states, so any number of processes can resume from them."""


def origin_of(recipe: Recipe, accelerator: Any) -> dict[str, Any]:
    """The origin that this run's checkpoints record."""
    facts = _facts(recipe)
    if recipe.micro_batch_matters:
        facts["training.micro_batch_size"] = recipe.training.micro_batch_size
    return {
        "format": FORMAT,
        "processes": accelerator.num_processes,
        "sharding": sharding_of(accelerator),
        "recipe": facts,
    }


def sharding_of(accelerator: Any) -> str:
    """The sharding of the run: `zero1` to `zero3`, `fsdp2`, or `whole`."""
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None:
        return f"zero{deepspeed.zero_stage}"
    return "whole" if getattr(accelerator.state, "fsdp_plugin", None) is None else "fsdp2"


def refusal(name: str, written: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """The reason why a run with origin `ours` cannot resume from the checkpoint `name`; None if it can."""
    if written.get("format") != FORMAT:
        return (
            f"{name} was written by another version of alignkit: expected format {FORMAT}, "
            f"found {written.get('format')}; resume with that version"
        )
    if written["sharding"] != ours["sharding"]:
        wrote, uses = written["sharding"], ours["sharding"]
        return f"{name} was written under {wrote} and resumes only under it; this run uses {uses}"
    if written["processes"] != ours["processes"] and ours["sharding"] not in RESHARDED:
        return (
            f"{name} resumes only with {written['processes']} processes, because under {ours['sharding']} each wrote "
            f"its own share; found {ours['processes']}"
        )
    theirs, expected = written["recipe"], ours["recipe"]
    differing = sorted(key for key in theirs.keys() | expected.keys() if theirs.get(key) != expected.get(key))
    if not differing:
        return None
    shown = "; ".join(_difference(key, theirs.get(key), expected.get(key)) for key in differing[:3])
    return (
        f"{name} belongs to another recipe; a run resumes only from its own checkpoints. Differences: {shown}"
    )


def _difference(key: str, theirs: Any, ours: Any) -> str:
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (theirs, ours)):
        return f"{key} has other contents now"
    return f"{key} was {theirs!r}, now {ours!r}"


def _facts(recipe: Recipe) -> dict[str, Any]:
    """The options that determine the trained weights, by dotted key; files and folders by their contents."""
    facts: dict[str, Any] = {}
    for keys, field, value in walk(recipe):
        if MAY_CHANGE in field.metadata:
            continue
        by_content = CONTENT_MATTERS in field.metadata and value is not None
        if by_content and isinstance(value, list):
            facts[".".join(keys)] = [_contents(Path(one)) for one in value]
            continue
        facts[".".join(keys)] = _contents(Path(value)) if by_content else to_jsonable_python(value)
    if isinstance(recipe.data.validation, float):  # what is held out is not trained on
        facts["data.validation"] = recipe.data.validation
    return facts


def _contents(path: Path) -> str:
    """A digest of a folder's configuration and samples of its weights, or of a file; otherwise the name itself."""
    if path.is_dir():
        configs = [
            file for file in sorted(path.glob("*config.json")) if file.name != "generation_config.json"
        ]
        weights = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
        parts = [file.read_bytes() for file in configs] + [_sample(file) for file in weights]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return str(path)


def _sample(file: Path) -> bytes:
    """The name, size and digest of evenly spread blocks of a file."""
    size = file.stat().st_size
    sampled = hashlib.sha256()
    with file.open("rb") as stream:
        for block in range(_BLOCKS):
            stream.seek(max(0, size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
            sampled.update(stream.read(_BLOCK_BYTES))
    return f"{file.name} {size} {sampled.hexdigest()}".encode()
