"""The oracle of `linear_divergence`, from materialised float64 logits and autograd, and random inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from alignkit.kernels import Divergences, linear_divergence

STUDENT = ("forward_kl", "reverse_kl", "student_ce")
TEACHER = ("teacher_reverse_kl", "teacher_ce")
NAMES = (
    "student_hidden",
    "student_weight",
    "student_bias",
    "teacher_hidden",
    "teacher_weight",
    "teacher_bias",
)
WARPED = {
    "temperature": 1.7,
    "tempered_entropy": False,
    "student_logit_scale": 0.6,
    "student_softcap": 5.0,
    "teacher_logit_scale": 1.2,
    "teacher_softcap": 8.0,
}


@dataclass(frozen=True)
class Inputs:
    """The operands, which of them train, and labels."""

    operands: dict[str, Tensor]
    labels: Tensor

    def leaves(self, dtype: torch.dtype, training: tuple[str, ...]) -> dict[str, Tensor]:
        """Fresh copies in `dtype`."""
        return {
            name: x.detach().to(dtype, copy=True).requires_grad_(name in training)
            for name, x in self.operands.items()
        }


def inputs(
    count: int, vocabulary: int, widths: tuple[int, int] = (6, 9), seed: int = 0, size: float = 1.0
) -> Inputs:
    """Random operands of a student and a wider teacher, logits of about `size` * sqrt(width)."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    operands = {
        "student_hidden": random(count, widths[0]) * size,
        "student_weight": random(vocabulary, widths[0]),
        "student_bias": random(vocabulary),
        "teacher_hidden": random(count, widths[1]) * size,
        "teacher_weight": random(vocabulary, widths[1]),
        "teacher_bias": random(vocabulary),
    }
    return Inputs(operands, torch.randint(0, vocabulary, (count,), generator=make))


def call(x: Mapping[str, Tensor | None], labels: Tensor | None, **options: Any) -> Divergences:
    """`linear_divergence` of operands by name."""
    return linear_divergence(
        x["student_hidden"],
        x["student_weight"],
        x["teacher_hidden"],
        x["teacher_weight"],
        labels,
        student_bias=x.get("student_bias"),
        teacher_bias=x.get("teacher_bias"),
        **options,
    )


def oracle(x: Mapping[str, Tensor], labels: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every output, each with gradient to its own side only."""
    tau = options.get("temperature", 1.0)
    raw = {side: _logits(x, side, options) for side in ("student", "teacher")}
    q, p = ((raw[side] / tau).log_softmax(dim=1) for side in raw)
    fixed_q, fixed_p = q.detach(), p.detach()
    found = {
        "forward_kl": _kl(fixed_p, q),
        "reverse_kl": _kl(q, fixed_p),
        "teacher_reverse_kl": _kl(fixed_q, p),
    }
    for side, logits in raw.items():
        entropy_logits = logits / tau if options.get("tempered_entropy", True) else logits
        found[f"{side}_entropy"] = torch.special.entr(entropy_logits.softmax(dim=1)).sum(dim=1).detach()
        found[f"{side}_ce"] = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        found[f"{side}_top1"] = logits.argmax(dim=1) == labels
    return found


def _logits(x: Mapping[str, Tensor], side: str, options: Mapping[str, Any]) -> Tensor:
    logits = torch.einsum("nh,vh->nv", x[f"{side}_hidden"], x[f"{side}_weight"])
    logits = (logits + x[f"{side}_bias"]) * options.get(f"{side}_logit_scale", 1.0)
    cap = options.get(f"{side}_softcap")
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) of each row of log-probabilities."""
    return torch.nn.functional.kl_div(b, a, reduction="none", log_target=True).sum(dim=1)


def values(found: Divergences) -> dict[str, Tensor]:
    """The outputs that are not None, by name."""
    pairs = ((field.name, getattr(found, field.name)) for field in fields(found))
    return {name: value for name, value in pairs if value is not None}


def upstream(names: tuple[str, ...], count: int, seed: int = 7) -> dict[str, Tensor]:
    """Random upstream gradients, one for each output and row."""
    make = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, generator=make, dtype=torch.float64) for name in names}


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest error over the largest value, which counts for a fiftieth at least: 0 has a rounding error too."""
    if expected.numel() == 0:
        return 0.0
    error = (found.detach().double() - expected.detach().double()).abs().max()
    return float(error / expected.detach().double().abs().max().clamp(min=0.02))


def compare(
    made: Inputs,
    options: Mapping[str, Any],
    training: tuple[str, ...],
    used: tuple[str, ...],
    *,
    implementation: str,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
) -> None:
    """Compare values and, with random upstream gradients of the outputs `used`, every gradient of `training`."""
    mine, theirs = made.leaves(dtype, training), made.leaves(dtype, ())
    theirs = {name: x.double().requires_grad_(name in training) for name, x in theirs.items()}
    found = values(call(mine, made.labels, top1=True, implementation=implementation, **options))
    expected = oracle(theirs, made.labels, options)
    above = upstream(used, len(made.labels))
    for name, value in found.items():
        if name.endswith("top1"):
            assert torch.equal(value, expected[name]), name
        else:
            assert value.dtype == torch.promote_types(dtype, torch.float32)
            assert relative(value, expected[name]) < tolerance, name
    names = [name for name in used if name in found and found[name].requires_grad]
    assert names or not training
    if not names:
        return
    sum((found[name] * above[name].to(found[name].dtype)).sum() for name in names).backward()
    sum((expected[name] * above[name]).sum() for name in names).backward()
    for name in training:
        gradient = theirs[name].grad
        if gradient is None or not gradient.any():
            assert mine[name].grad is None or not mine[name].grad.any(), name
        else:
            assert mine[name].grad is not None, name
            assert mine[name].grad.dtype == dtype
            assert relative(mine[name].grad, gradient) < 2 * tolerance, name
