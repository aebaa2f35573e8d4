"""A digest of the weights that make a model's outputs, whatever name they were loaded by."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from alignkit.models.adapters import start_of

THREADS = 4
_OF_A_FILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures")
"""Entries of a configuration that describe the file and not the outputs."""


def digest_of_weights(model: Any) -> str:
    """The SHA-256 of a model's configuration and weights, in hex.

    Of a peft model, the weights are those of the model before training: without an adapter, or with the frozen copy
    of the adapter that training started from. So a model has the same digest with and without new adapters.
    """
    bare = model.get_base_model() if is_peft_model(model) else model
    config = {name: value for name, value in bare.config.to_dict().items() if name not in _OF_A_FILE}
    total = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    named = sorted(_weights(model))
    with ThreadPoolExecutor(THREADS) as pool:
        for (name, _), found in zip(named, pool.map(lambda item: _digest(item[1]), named), strict=True):
            total.update(name.encode() + found)
    return total.hexdigest()


def dropouts_of(model: Any) -> list[str]:
    """The parts of the model before training that drop values at random in training mode; empty for most models."""
    bare = model.get_base_model() if is_peft_model(model) else model
    left_out = _adapters(model)
    modules = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module.p > 0 and not left_out & set(name.split("."))
    ]
    config = bare.config.get_text_config().to_dict()
    rates = [
        name
        for name, value in config.items()
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float) and value > 0
    ]
    return sorted({*rates, *modules})


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the model before training, under the names that it has without peft."""
    left_out = _adapters(model)
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not left_out & set(name.split(".")):
            plain = name.removeprefix("base_model.model.") if is_peft_model(model) else name
            yield plain.replace(".base_layer.", "."), value


def _adapters(model: Any) -> set[str]:
    """The names of a model's adapters that are not part of it before training."""
    return set(model.peft_config) - {start_of(model)} if is_peft_model(model) else set()


def _digest(value: Tensor) -> bytes:
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    head = f"{value.dtype} {tuple(value.shape)}".encode()
    return hashlib.sha256(head + hashlib.sha256(memoryview(raw.numpy())).digest()).digest()
