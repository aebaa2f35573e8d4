"""Private and undocumented parts of torch and TRL that the kernels rely on; `tests/test_upstream.py` pins them."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["assert_on_device", "children_by_name", "is_compiled", "l1_backward", "whole_head"]


def assert_on_device(holds: Tensor, message: str) -> None:
    """Raise RuntimeError unless `holds`, a bool scalar; a GPU fails later, at its own time, and is not waited for."""
    torch._assert_async(holds, message)


def children_by_name(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's mutable dict of children.

    `named_children` omits the second name of a shared module, and `setattr` would call hooks of sharded models.
    """
    children: dict[str, nn.Module | None] = module._modules
    return children


def l1_backward(upstream: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """Compute the gradient to `q` [n, V] of `torch.cdist(q, p, p=1)` from the distances' gradient `upstream` [n, m].

    Autograd calls the same function. For p=1 it ignores its last argument, the distances.
    """
    gradient: Tensor = torch.ops.aten._cdist_backward(upstream, q, p, 1.0, upstream)
    return gradient


def whole_head(*parameters: Any) -> AbstractContextManager[Any]:
    """Return a context in which a head's parameters are gathered from ZeRO-3's partitions."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx  # saves trl at start-up

    return maybe_gather_lm_head_ctx(*parameters)


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` has replaced the module's calls."""
    return module._compiled_call_impl is not None
