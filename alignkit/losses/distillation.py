"""Records of distillation losses: both models' hidden states and heads as input, a loss and metrics as output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from alignkit.kernels.linear_divergence import Divergences
from alignkit.kernels.model_head import HeadWeights


class Rows(NamedTuple):
    """One model's hidden states [N, H] at the batch's loss tokens, and the head that makes logits of them."""

    hidden: Tensor
    head: HeadWeights

    def take(self, index: Tensor) -> "Rows":
        """Return the rows at `index`, a tensor of positions or a mask."""
        return Rows(self.hidden[index], self.head)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of the batch that carry loss, in the order of the rows of `Rows`."""

    labels: Tensor
    """[N], ids of the tokens to predict."""
    sequence: Tensor
    """[N], index in the batch of the sequence that each token belongs to."""
    sequences: int
    """B, the number of sequences in the batch."""
    seed: int = 0
    """Seed of all random draws in this batch."""

    def per_sequence(self, values: Tensor) -> Tensor:
        """Return the sums [B] of `values` [N] over each sequence, detached."""
        values = values.detach()
        values = values if values.is_floating_point() else values.float()
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)


class PairOutput(NamedTuple):
    """The loss and metrics of a student and its teacher. A tuple, so that ZeRO-3 finds the tensors to hook."""

    loss: Tensor
    """Scalar, differentiable: the sum over loss tokens. The caller divides."""
    tokens: Tensor
    """[B], number of loss tokens of each sequence."""
    sums: dict[str, Tensor]
    """Metric name -> its sum over each sequence's loss tokens, [B], detached."""
    calibration: dict[str, Tensor]
    """Model -> [B, bins, 3], bins of its confidence. Filled by the trainer in evaluations; empty in training."""

    @classmethod
    def of(cls, tokens: Tokens, losses: Tensor, metrics: Mapping[str, Tensor]) -> "PairOutput":
        """Make the output from each token's loss and metrics, [N] each. Metrics are logged as means over tokens."""
        sums = {name: tokens.per_sequence(values) for name, values in {**metrics, "loss": losses}.items()}
        return cls(losses.sum(), tokens.per_sequence(torch.ones_like(tokens.labels)), sums, {})


def operands(student: Rows, teacher: Rows) -> dict[str, Any]:
    """Return the arguments of a kernel over two models' rows, such as `kernels.linear_divergence`."""
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
"""Metrics that every distillation logs -> the field of `Divergences` that holds each."""


def token_metrics(divergences: Divergences) -> dict[str, Tensor]:
    """Return the values [N] of `TOKEN_METRICS`. Requires `divergences` computed with labels and `top1=True`."""
    return {name: cast(Tensor, getattr(divergences, field)) for name, field in TOKEN_METRICS.items()}
