"""Private and undocumented parts of torch and TRL that the kernels rely on; `tests/test_upstream.py` pins them."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["children_by_name", "l1_backward", "whole_head"]


def children_by_name(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's children, to be read and replaced.

    `named_children` leaves out a module's second name, and `setattr` would tell the hooks of sharded models.
    """
    children: dict[str, nn.Module | None] = module._modules
    return children


def l1_backward(upstream: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """The gradient to `q` [n, V] of `torch.cdist(q, p, p=1)`, given that to the distances, `upstream` [n, m].

    It is what autograd runs, which does not look at the distances (its last argument).
    """
    gradient: Tensor = torch.ops.aten._cdist_backward(upstream, q, p, 1.0, upstream)
    return gradient


def whole_head(*parameters: Any) -> AbstractContextManager[Any]:
    """A context within which a head's parameters, which ZeRO-3 partitioned, are whole."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx  # saves trl at start-up

    return maybe_gather_lm_head_ctx(*parameters)
