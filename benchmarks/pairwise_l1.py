"""kernels.pairwise_l1 against materialised softmax rows and `torch.cdist`."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops import Shape, two_heads

_CPU = {"hidden": 576, "vocabulary": 49152}
SHAPES: dict[str, list[Shape]] = {
    "quick": [{"rows": 16, "hidden": 32, "vocabulary": 1000, "head": "trained"}],
    "cpu": [{"rows": rows, **_CPU, "head": head} for rows in (64, 256) for head in ("frozen", "trained")],
    "cuda": [
        {"rows": rows, "hidden": 4096, "vocabulary": 128256, "head": head}
        for rows in (256, 1024)
        for head in ("frozen", "trained")
    ],
    "growth": [
        {"rows": 128, "hidden": 576, "vocabulary": vocabulary, "head": "frozen"}
        for vocabulary in (12288, 24576, 49152, 98304)
    ],
}


def inputs(shape: Shape, device: str) -> dict[str, Tensor]:
    """Both models' rows and heads."""
    return two_heads(shape["rows"], shape, device)


def floor(shape: Shape) -> tuple[float, float]:
    """Both heads' logits and one product a gradient; a difference and a sum for each pair and column, twice."""
    products = 3 if shape["head"] == "frozen" else 4
    flops = 2.0 * products * shape["rows"] * shape["hidden"] * shape["vocabulary"]
    flops += 4.0 * shape["rows"] ** 2 * shape["vocabulary"]
    return flops, 2.0 * products * shape["hidden"] * (shape["rows"] + shape["vocabulary"])


def _loss(costs: Tensor) -> Tensor:
    """Something whose gradient differs from pair to pair, as a transport's does."""
    return (costs * torch.linspace(-1, 1, costs.numel(), device=costs.device).view(costs.shape)).sum()


def materialised(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    """All probabilities at once."""
    q = torch.softmax((student_hidden @ student_weight.T).float() / 2, dim=-1)
    p = torch.softmax((teacher_hidden @ teacher_weight.T).float() / 2, dim=-1)
    return _loss(torch.cdist(q, p, p=1))


def alignkit(**operands: Tensor) -> Tensor:
    """kernels.pairwise_l1."""
    from alignkit.kernels import pairwise_l1

    return _loss(pairwise_l1(**operands))


CONTENDERS: dict[str, Callable[..., Tensor]] = {"materialised": materialised, "alignkit": alignkit}
