"""kernels.pairwise_l1 against materialised softmax rows and `torch.cdist`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CPU = {"hidden": 576, "vocabulary": 49152}
SHAPES: dict[str, list[dict[str, Any]]] = {
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


def inputs(shape: dict[str, Any], device: str) -> dict[str, Tensor]:
    """float32 on a CPU, bfloat16 on a GPU; the teacher is frozen, the student's head as the shape says."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    found = {}
    for side in ("student", "teacher"):
        found[f"{side}_hidden"] = normal(shape["rows"], shape["hidden"])
        found[f"{side}_weight"] = normal(shape["vocabulary"], shape["hidden"]) * 0.05
    found["student_hidden"].requires_grad_()
    found["student_weight"].requires_grad_(shape["head"] == "trained")
    return found


def floor(shape: dict[str, Any]) -> tuple[float, float]:
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
