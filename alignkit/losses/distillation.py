"""Records of a distillation loss: two models' views of a batch's tokens in, a loss and its metrics out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from alignkit.kernels.linear_divergence import Divergences
from alignkit.kernels.model_head import HeadWeights


class Rows(NamedTuple):
    """One model's view of the batch's valid tokens: hidden states [N, H] and the head over them."""

    hidden: Tensor
    head: HeadWeights

    def take(self, index: Tensor) -> "Rows":
        """The rows at `index`."""
        return Rows(self.hidden[index], self.head)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The batch's valid tokens, those whose next-token label counts, in the order of `Rows`."""

    labels: Tensor
    """[N], the tokens to predict."""
    sequence: Tensor
    """[N], the sequence in the batch that each belongs to."""
    sequences: int
    """B, the number of sequences in the batch."""
    seed: int = 0
    """Seed of everything drawn at random from this batch."""

    def per_sequence(self, values: Tensor) -> Tensor:
        """[B], sums of `values` [N] over each sequence, detached."""
        values = values.detach()
        values = values if values.is_floating_point() else values.float()
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)


class PairOutput(NamedTuple):
    """The loss of a student and its teacher. ZeRO-3 finds the tensors to hook in tuples and dicts."""

    loss: Tensor
    """Scalar, the sum over valid tokens, differentiable; the caller divides."""
    tokens: Tensor
    """[B], valid tokens of each sequence."""
    sums: dict[str, Tensor]
    """For each metric its sum over each sequence's valid tokens, [B], detached."""
    calibration: dict[str, Tensor]
    """By model, [B, bins, 3]: bins of its confidence. The trainer measures it in evaluations; else empty."""

    @classmethod
    def of(cls, tokens: Tokens, losses: Tensor, metrics: Mapping[str, Tensor]) -> "PairOutput":
        """The output of losses [N] and metrics [N] of the tokens; a metric's log is its mean over tokens."""
        sums = {name: tokens.per_sequence(values) for name, values in {**metrics, "loss": losses}.items()}
        return cls(losses.sum(), tokens.per_sequence(torch.ones_like(tokens.labels)), sums, {})


def operands(student: Rows, teacher: Rows) -> dict[str, Any]:
    """The arguments of a kernel over two models' rows, such as `kernels.linear_divergence`."""
    return {
        f"{side}_{name}": value
        for side, rows in (("student", student), ("teacher", teacher))
        for name, value in {"hidden": rows.hidden, **rows.head._asdict()}.items()
    }


TOKEN_METRICS = {
    "student/cross_entropy": "student_ce",
    "teacher/cross_entropy": "teacher_ce",
    "student/entropy": "student_entropy",
    "teacher/entropy": "teacher_entropy",
    "student/accuracy": "student_top1",
    "teacher/accuracy": "teacher_top1",
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
}
"""Metrics that every distillation logs of both models, and the field of `Divergences` that each is."""


def token_metrics(divergences: Divergences) -> dict[str, Tensor]:
    """The values [N] of `TOKEN_METRICS`; `divergences` made with labels and `top1=True`."""
    return {name: cast(Tensor, getattr(divergences, field)) for name, field in TOKEN_METRICS.items()}
