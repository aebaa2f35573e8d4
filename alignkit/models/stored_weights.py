"""Checks that a checkpoint is whole by the headers of its safetensors files, without reading a weight.

A model is refused when it is imported or estimated, and a job when it is created.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError
from alignkit.models.trainable import config_of, quantization_of

BUILDING = threading.Lock()
"""Held while transformers builds a model without weights, because it then changes torch's default dtype for all
threads."""
_FILES = "*.safetensors"
_SCALES = re.compile(r"(weight_scale|input_scale|scale_inv|qweight|qzeros|absmax|quant_map)$")
"""Ends of the names of tensors that belong to quantised weights."""


def require_safetensors(folder: Path) -> None:
    """Raise ModelError unless all weights are safetensors files in `folder`: nothing else is ever loaded."""
    from safetensors import SafetensorError, safe_open  # saves safetensors at start-up

    weights = {path.name: path for path in folder.glob(_FILES)}
    if not weights:
        raise ModelError("it has no *.safetensors file; pickled weights are not accepted")
    for name, path in weights.items():
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ModelError(f"{name} is not a safetensors file ({error})") from error
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index.name} is not an index of safetensors files") from error
        if not named <= weights.keys():
            missing = ", ".join(sorted(map(str, named - weights.keys()))[:3])
            raise ModelError(f"{index.name} names missing files: {missing}")


def require_whole(folder: Path) -> None:
    """Raise ModelError, with the clause of `reason`, unless the model in `folder` would be loaded whole.

    A folder without safetensors files, a hub id, quantised weights, which are converted while loading, and a
    configuration of which no model can be built are left to loading.
    """
    files = [folder / "config.json", *folder.glob(_FILES), *folder.glob("*.index.json")]
    if any(folder.glob(_FILES)) and (why := _refusal(folder, tuple(map(changed, sorted(files))))):
        raise ModelError(why)


def reason(found: Mapping[str, Any]) -> str | None:
    """Why a model with this loading info of transformers is not whole, as a clause about it; None if it is."""
    if missing := sorted(found["missing_keys"]):
        names = ", ".join(missing[:3]) + (" …" if missing[3:] else "")
        return f"lacks {len(missing)} of the model's weights, which would be random: {names}"
    if scales := [name for name in sorted(found["unexpected_keys"]) if _SCALES.search(name)]:
        return (
            f"holds quantised weights without a quantization_config in its config.json ({scales[0]}); use "
            "the checkpoint from which it was quantised"
        )
    if other := sorted(found["mismatched_keys"]):
        name, stored, expected = other[0]
        return (
            f"has {len(other)} weights of another shape than its config.json says: {name}, expected "
            f"{list(expected)}, found {list(stored)}"
        )
    return None


def changed(file: Path) -> tuple[str, int, int]:
    """A stamp that changes with a file, for keys of cached results: name, modification time in ns, size in bytes.

    The time and the size of a missing file are 0.
    """
    found = file.stat() if file.is_file() else None
    return file.name, *((found.st_mtime_ns, found.st_size) if found else (0, 0))


@lru_cache(maxsize=64)
def _refusal(folder: Path, _files: tuple[tuple[str, int, int], ...]) -> str | None:
    try:
        require_safetensors(folder)
        config = config_of(folder)
    except ModelError as error:
        return str(error)
    if quantization_of(config) is not None or not _loaded(folder):
        return None
    try:
        found = _loading_info(folder)
    except Exception as error:  # each model's code checks its configuration differently, and loading says it
        why = unjoined(error)
    else:
        why = reason(found)
    return None if why is None else f"it {why}"


def unjoined(error: Exception) -> str | None:
    """`reason` for an error of transformers that says that tensors could not be joined; None for any other."""
    if "conversion of the weights" not in str(error):
        return None
    return (
        "lacks some of the weights that are joined while loading, such as those of one of a layer's experts"
    )


def _loading_info(folder: Path) -> dict[str, Any]:
    """What transformers says of loading tensors of the stored names and shapes.

    All of them are on the meta device, and so is the model: nothing is read or allocated.
    """
    import torch  # saves torch and transformers at start-up
    from transformers import AutoConfig, AutoModelForCausalLM

    meta = torch.device("meta")
    with BUILDING, _quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with meta:
            model = AutoModelForCausalLM.from_config(config)
            stored = {name: torch.empty(shape) for name, shape in _shapes(folder)}
        _, found = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=stored,
            dtype=torch.float32,
            device_map={"": meta},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return dict(found)


def _loaded(folder: Path) -> list[Path]:
    """The files that transformers loads: a repository may hold the weights in another format, too."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
    return [folder / name for name in sorted(set(names))]


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """(name, shape) of every stored tensor."""
    from safetensors import safe_open  # saves safetensors at start-up

    for file in _loaded(folder):
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_slice(name).get_shape()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its report on missing weights."""
    from transformers.utils import logging  # saves transformers at start-up

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
