"""Input and output records of `linear_logprob`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.kernels import rows
from alignkit.kernels.head import Operands

OPTIONAL = {"entropy": torch.float32, "top1": torch.bool, "confidence": torch.float32}
"""Optional output -> its dtype. Each is a field of `LogProbs` and an argument of `linear_logprob`."""


@dataclass(frozen=True, slots=True)
class LogProbs:
    """The results of `linear_logprob`, zero or False where the label is ignored. All but `logps` are optional."""

    logps: Tensor
    """[N] float32, log-probs in nats, differentiable."""
    entropy: Tensor | None = None
    """[N] float32, entropies in nats, detached."""
    top1: Tensor | None = None
    """[N] bool, whether the label has the largest logit; of equal ones the first counts."""
    confidence: Tensor | None = None
    """[N] float32, the largest probability, detached."""


class Request(NamedTuple):
    """The outputs and gradients that a sweep over the vocabulary must compute."""

    outputs: tuple[str, ...]
    """Names of the requested outputs, a subset of OPTIONAL."""
    hidden_gradient: bool
    """Whether to compute the hidden states' gradient."""
    head_gradient: bool
    """Whether `Engine.head_gradient` will be called. The sweep may then keep intermediate results for it."""

    @property
    def returned(self) -> tuple[str, ...]:
        """Names of all returned values."""
        return "logps", *self.outputs

    def empty_values(self, labels: Tensor) -> dict[str, Tensor]:
        """Allocate each returned value, [N], uninitialised."""
        return {
            name: labels.new_empty(labels.shape, dtype=OPTIONAL.get(name, torch.float32))
            for name in self.returned
        }


def labelled_rows(labels: Tensor, weight: Tensor, ignore_index: int | None) -> rows.Rows:
    """Return the rows whose label is not `ignore_index`. Raises as `rows.kept` for a label outside the vocabulary."""
    vocabulary = weight.size(0)
    return rows.kept(labels, vocabulary, ignore_index, f"labels must be in [0, {vocabulary}) or ignored")


class Found(NamedTuple):
    """Intermediate results of the sweep that `Engine.head_gradient` needs."""

    picked: Tensor
    """[N] float32, the labels' logits."""
    lse: Tensor
    """[N] float32, logsumexp of the logits."""
    kept: Any = None
    """Other intermediate results, in a form of the engine's own."""


class Swept(NamedTuple):
    """The results of one sweep over the vocabulary."""

    values: dict[str, Tensor]
    """Name -> value [N]. `logps` is more accurate than `picked - lse` for large logits."""
    found: Found
    hidden_gradient: Tensor | None
    """[N, H], d logp / d hidden."""


class Engine(NamedTuple):
    """The two passes over the vocabulary, implemented in PyTorch or in Triton."""

    sweep: Callable[[Operands, Tensor, Request], Swept]
    """(operands, labels, request) -> the log-probs and the requested outputs."""
    head_gradient: Callable[[Operands, Tensor, Found, Tensor], tuple[Tensor, Tensor | None]]
    """(operands, labels, found, upstream [N] = d loss / d logps) -> float32 gradients to weight and, if any, bias."""
    nothing_kept: Callable[[Tensor], Any]
    """weight -> `Found.kept` after a sweep that kept nothing."""
