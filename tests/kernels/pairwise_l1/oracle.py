"""Operands and a float64 oracle for pairwise_l1, and their comparison."""

from typing import Any

import torch
from torch import Tensor

from alignkit.kernels import pairwise_l1

NAMES = (
    "student_hidden",
    "student_weight",
    "student_bias",
    "teacher_hidden",
    "teacher_weight",
    "teacher_bias",
)
WARPED = {
    "student_logit_scale": 0.6,
    "student_softcap": 3.0,
    "teacher_logit_scale": 1.4,
    "teacher_softcap": 5.0,
    "temperature": 0.8,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(
    rows: int = 6,
    others: int = 5,
    vocabulary: int = 101,
    *,
    padding: int = 0,
    seed: int = 0,
    width: float = 1.0,
) -> dict[str, Tensor]:
    """Both sides' operands in float64; the teacher is wider and its vocabulary longer by `padding`."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * width

    shapes = [(rows, 8), (vocabulary, 8), (vocabulary,), (others, 11), (vocabulary + padding, 11)]
    return dict(zip(NAMES, [random(*s) for s in [*shapes, (vocabulary + padding,)]], strict=True))


def probabilities(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> Tensor:
    x = torch.einsum("nh,vh->nv", hidden, weight)
    x = (x if bias is None else x + bias) * scale
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    shifted = (x - x.amax(1, keepdim=True)) / temperature
    return shifted.exp() / shifted.exp().sum(1, keepdim=True)


def oracle(operands: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """[n, m], every difference at once, on the shared columns."""
    columns = min(operands["student_weight"].size(0), operands["teacher_weight"].size(0))
    q, p = (
        probabilities(
            operands[f"{side}_hidden"],
            operands[f"{side}_weight"][:columns],
            operands[f"{side}_bias"][:columns] if f"{side}_bias" in operands else None,
            options.get(f"{side}_logit_scale", 1.0),
            options.get(f"{side}_softcap"),
            options.get("temperature", 2.0),
        )
        for side in ("student", "teacher")
    )
    return (q[:, None] - p[None]).abs().sum(dim=2)


def relative(found: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    difference = (found.detach().cpu().double() - expected.detach()).abs().max()
    # below the floor all has cancelled, as a one-hot row's gradient does
    return float(difference / expected.detach().abs().max().clamp(min=1e-4))


def compare(
    operands: dict[str, Tensor],
    options: dict[str, Any],
    training: tuple[str, ...],
    dtype: torch.dtype,
    tolerance: float,
    implementation: str | None = None,
) -> None:
    """Distances and every gradient, under a random upstream gradient; the oracle sees the rounded operands."""
    low = {k: v.to(DEVICE, dtype).requires_grad_(k in training) for k, v in operands.items()}
    exact = {k: v.detach().cpu().double().requires_grad_(k in training) for k, v in low.items()}
    found = pairwise_l1(**low, **options, implementation=implementation)
    expected = oracle(exact, options)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.requires_grad == bool(training)
    assert relative(found, expected) < tolerance
    if not training:
        return
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (found * upstream.to(found)).sum().backward()
    (expected * upstream).sum().backward()
    for name in operands:
        assert (low[name].grad is not None) == (name in training)
        if name in training:
            assert low[name].grad.dtype == dtype
            assert relative(low[name].grad, exact[name].grad) < tolerance, name
