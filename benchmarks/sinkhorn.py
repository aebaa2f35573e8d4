"""kernels.sinkhorn against the same iterations under autograd."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

EPSILON = 0.1
SHAPES: dict[str, list[dict[str, Any]]] = {
    "quick": [{"problems": 2, "rows": 16, "iterations": 5}],
    "cpu": [
        {"problems": 1, "rows": 256, "iterations": 20},
        {"problems": 1, "rows": 1024, "iterations": 20},
        {"problems": 16, "rows": 128, "iterations": 20},
        {"problems": 1, "rows": 256, "iterations": 200},
    ],
    "cuda": [
        {"problems": 1, "rows": 256, "iterations": 20},
        {"problems": 1, "rows": 2048, "iterations": 20},
        {"problems": 256, "rows": 256, "iterations": 20},
    ],
}


def inputs(shape: dict[str, Any], device: str) -> dict[str, Tensor]:
    """Costs between 0 and 2, as L1's; the number of iterations travels as a tensor's size."""
    generator = torch.Generator(device).manual_seed(0)
    size = (shape["problems"], shape["rows"], shape["rows"])
    cost = 2 * torch.rand(*size, generator=generator, device=device)
    return {"cost": cost.requires_grad_(), "steps": torch.empty(shape["iterations"], device=device)}


def floor(shape: dict[str, Any]) -> tuple[float, float]:
    """An addition and an exponential for each entry, twice an iteration and as much back; costs in, gradient out."""
    entries = shape["problems"] * shape["rows"] ** 2
    return 8.0 * entries * shape["iterations"], 8.0 * entries


def materialised(cost: Tensor, steps: Tensor) -> Tensor:
    """The matrix in the log domain, scaled again and again; autograd keeps every one."""
    log_plan = -cost / EPSILON
    for _ in range(len(steps)):
        log_plan = log_plan - log_plan.logsumexp(dim=-1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(dim=-2, keepdim=True)
    return (log_plan.exp() * cost).sum()


def alignkit(cost: Tensor, steps: Tensor, gradient: Any = "unrolled") -> Tensor:
    """kernels.sinkhorn."""
    from alignkit.kernels import sinkhorn

    return sinkhorn(cost, epsilon=EPSILON, iterations=len(steps), gradient=gradient).cost.sum()


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "materialised": materialised,
    "alignkit": alignkit,
    "alignkit, envelope": partial(alignkit, gradient="envelope"),
}
