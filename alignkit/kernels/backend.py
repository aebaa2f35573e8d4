"""Selection of an op's implementation: Triton on GPUs, chunked PyTorch elsewhere, a simple reference for tests.

The tensor's device decides, unless an argument or ALIGNKIT_KERNELS forces one. Forcing an implementation that cannot
run raises an error; there is no silent fallback. An op is a package with a module per implementation: `torch` and
`triton` define an `ENGINE`, `reference` a function.
"""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Implementation = Literal["triton", "torch", "reference", "liger", "quack"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("triton", "torch", "reference")
"""Those that every op has. `linear_logprob` also has "liger" and "quack", other projects', never by default."""
VARIABLE = "ALIGNKIT_KERNELS"
LOGITS_VARIABLE = "ALIGNKIT_LOGITS"


def choose(
    tensor: Tensor, forced: str | None = None, known: Sequence[Implementation] = IMPLEMENTATIONS
) -> Implementation:
    """Return the implementation: `forced`, else ALIGNKIT_KERNELS, else the default of `tensor`'s device.

    Raises ValueError for an unknown name, and for Triton if it cannot run.
    """
    source, name = ("implementation", forced) if forced else (VARIABLE, os.environ.get(VARIABLE))
    if not name:
        return "triton" if tensor.is_cuda else "torch"
    found = next((one for one in known if one == name), None)
    if found is None:
        raise ValueError(f"{source} must be one of {', '.join(known)}, found {name!r}")
    if name == "triton" and not tensor.is_cuda and not interpreted():
        raise ValueError(
            f"{source} is triton, but the tensors are on {tensor.device.type}: Triton needs a GPU, or "
            "TRITON_INTERPRET=1 set before the first import"
        )
    return found


def engine(op: str, implementation: str) -> Any:
    """Return the ENGINE of the package `op`. Imports it on demand, since Triton is not installed everywhere."""
    return importlib.import_module(f"{op}.{implementation}").ENGINE


def logits_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of a head's logits in Triton's engines: at least float32 by default.

    ALIGNKIT_LOGITS=bf16 keeps them in the weight's own dtype. That is faster, but rounding errors add up over a
    sequence's tokens. Raises ValueError for values other than bf16 and float32.
    """
    asked = os.environ.get(LOGITS_VARIABLE) or "float32"
    if asked not in {"bf16", "float32"}:
        raise ValueError(f"{LOGITS_VARIABLE} must be bf16 or float32, found {asked!r}")
    return weight.dtype if asked == "bf16" else torch.promote_types(weight.dtype, torch.float32)


def memory(tensor: Tensor) -> int | None:
    """Return the total memory of the tensor's GPU in bytes; None on a CPU."""
    return int(torch.cuda.get_device_properties(tensor.device).total_memory) if tensor.is_cuda else None


def processors(tensor: Tensor) -> int:
    """Return the number of multiprocessors of the tensor's GPU; 4 under Triton's interpreter."""
    if not tensor.is_cuda:
        return 4
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


@cache
def interpreted() -> bool:
    """Return whether Triton's interpreter replaces a GPU. Triton reads TRITON_INTERPRET when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
