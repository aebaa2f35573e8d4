"""The benchmarked ops: every module of this package that has SHAPES, and what such a module holds.

SHAPES       {"cpu": […], "cuda": […], "quick": […], "growth": […]}: what `inputs` takes, as JSON can hold it
inputs       (shape, device) -> tensors by name, those that train with requires_grad; the same on every call
CONTENDERS   name -> (**inputs) -> a scalar to be differentiated; "materialised" is what the others are divided by
floor        shape -> (flops, bytes) without which the op cannot be done, forward and backward
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

Shape = dict[str, Any]
RUNNERS = {"heads", "training_step"}
"""Modules that are run, not measured."""


class Op(Protocol):
    """A module of this package that measures one op."""

    __name__: str
    SHAPES: dict[str, list[Shape]]
    CONTENDERS: dict[str, Callable[..., Tensor]]

    def inputs(self, shape: Shape, device: str) -> dict[str, Tensor]:
        """Tensors by name."""

    def floor(self, shape: Shape) -> tuple[float, float]:
        """(flops, bytes)."""


def discover() -> dict[str, Op]:
    """Every op's module by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    found = {}
    for name in names:
        if name in RUNNERS:
            continue
        module: Any = importlib.import_module(f"benchmarks.{name}")
        if hasattr(module, "SHAPES"):
            found[name] = module
    return found
