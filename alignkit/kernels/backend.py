"""Which implementation of an op runs: Triton on GPUs, chunked PyTorch elsewhere, a materialised reference for tests.

Chosen by the tensor's device, or forced by an argument or by ALIGNKIT_KERNELS. A forced implementation that cannot
run here is an error, never a silent fallback. An op is a package with a module per implementation: `torch` and
`triton` hold an `ENGINE`, `reference` a function.
"""

import importlib
import importlib.util
import os
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Implementation = Literal["triton", "torch", "reference"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("triton", "torch", "reference")
VARIABLE = "ALIGNKIT_KERNELS"
LOGITS_VARIABLE = "ALIGNKIT_LOGITS"


def choose(tensor: Tensor, forced: str | None = None) -> Implementation:
    """The implementation for `tensor`'s device; `forced` goes before ALIGNKIT_KERNELS, that before the device.

    Raises ValueError for an unknown name, and for Triton where it cannot run.
    """
    source, name = ("implementation", forced) if forced else (VARIABLE, os.environ.get(VARIABLE))
    if not name:
        return "triton" if tensor.is_cuda else "torch"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{source} must be one of {', '.join(IMPLEMENTATIONS)}, found {name!r}")
    if name == "triton" and not tensor.is_cuda and not interpreted():
        raise ValueError(
            f"{source} is triton, but the tensors are on {tensor.device.type}: Triton needs a GPU, or "
            "TRITON_INTERPRET=1 set before the first import"
        )
    return name


def engine(op: str, implementation: Implementation) -> Any:
    """The ENGINE of the package `op`; imported on demand, since Triton is not installed everywhere."""
    return importlib.import_module(f"{op}.{implementation}").ENGINE


def logits_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which Triton's engines keep the logits of a head: at least float32.

    ALIGNKIT_LOGITS=bf16 keeps them in the weight's own 16 bits: faster, with a rounding error that sums over a
    sequence's tokens. Raises ValueError for another value than bf16 and float32.
    """
    asked = os.environ.get(LOGITS_VARIABLE) or "float32"
    if asked not in {"bf16", "float32"}:
        raise ValueError(f"{LOGITS_VARIABLE} must be bf16 or float32, found {asked!r}")
    return weight.dtype if asked == "bf16" else torch.promote_types(weight.dtype, torch.float32)


def memory(tensor: Tensor) -> int | None:
    """Bytes of the tensor's GPU in all; None on a CPU."""
    return int(torch.cuda.get_device_properties(tensor.device).total_memory) if tensor.is_cuda else None


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's GPU; a few where Triton's interpreter stands in for one."""
    if not tensor.is_cuda:
        return 4
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


@cache
def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU; Triton reads the variable at its import."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
