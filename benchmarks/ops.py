"""The benchmarked ops: every module of this package that has the name of a kernel, and what it holds.

SHAPES       {"cpu": […], "cuda": […], "quick": […], "growth": […]}: what `inputs` takes, as JSON can hold it
inputs       (shape, device) -> tensors by name, those that train with requires_grad; the same on every call
CONTENDERS   name -> (**inputs) -> a scalar to be differentiated; "materialised" is what the others are divided by
floor        shape -> (flops, bytes) without which the op cannot be done, forward and backward
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

import benchmarks
from alignkit import kernels

Shape = dict[str, Any]


class Op(Protocol):
    """A module of this package that measures one op."""

    __name__: str
    SHAPES: dict[str, list[Shape]]
    CONTENDERS: dict[str, Callable[..., Tensor]]

    def inputs(self, shape: Shape, device: str) -> dict[str, Tensor]:
        """Tensors by name."""

    def floor(self, shape: Shape) -> tuple[float, float]:
        """(flops, bytes)."""


def two_heads(rows: int, shape: Shape, device: str) -> dict[str, Tensor]:
    """Operands of a student and a teacher: float32 on a CPU, bfloat16 on a GPU. The teacher is frozen, the student's
    head is as the shape says."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    found = {}
    for side in ("student", "teacher"):
        found[f"{side}_hidden"] = normal(rows, shape["hidden"])
        found[f"{side}_weight"] = normal(shape["vocabulary"], shape["hidden"]) * 0.05
    found["student_hidden"].requires_grad_()
    found["student_weight"].requires_grad_(shape["head"] == "trained")
    return found


def discover() -> dict[str, Op]:
    """Every op's module by its name. The other modules are not imported: each measured process comes through here."""
    here = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)}
    return {
        name: cast("Op", importlib.import_module(f"benchmarks.{name}"))
        for name in sorted(here & set(kernels.__all__))
    }
