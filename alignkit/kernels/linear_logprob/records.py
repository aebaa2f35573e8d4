"""What goes into `linear_logprob` and comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.kernels.head import Operands

OPTIONAL = {"entropy": torch.float32, "top1": torch.bool, "confidence": torch.float32}
"""Outputs beside the log-probs -> their dtype; each is a field of `LogProbs` and an argument of `linear_logprob`."""


@dataclass(frozen=True, slots=True)
class LogProbs:
    """The results of `linear_logprob`, zero (False) where the label is ignored; all but `logps` on request."""

    logps: Tensor
    """[N] float32 log-probs in nats, differentiable."""
    entropy: Tensor | None = None
    """[N] float32 nats, detached."""
    top1: Tensor | None = None
    """[N] bool, whether the label is the first of the largest logits."""
    confidence: Tensor | None = None
    """[N] float32, the largest probability, detached."""


class Request(NamedTuple):
    """What a sweep over the vocabulary makes beside the log-probs."""

    outputs: tuple[str, ...]
    """Names among OPTIONAL."""
    hidden_gradient: bool
    """Whether the hidden states' gradient is made."""
    head_gradient: bool
    """Whether `Engine.head_gradient` will be called, for which the sweep may keep what it likes."""

    @property
    def returned(self) -> tuple[str, ...]:
        """Names of all values."""
        return "logps", *self.outputs

    def empty_values(self, labels: Tensor) -> dict[str, Tensor]:
        """Room for each returned value, [N]."""
        return {
            name: labels.new_empty(labels.shape, dtype=OPTIONAL.get(name, torch.float32))
            for name in self.returned
        }


class Found(NamedTuple):
    """What `Engine.head_gradient` needs from the sweep."""

    picked: Tensor
    """[N] float32, the labels' logits."""
    lse: Tensor
    """[N] float32, logsumexp."""
    kept: Any = None
    """The engine's own."""


class Swept(NamedTuple):
    """The results of one sweep over the vocabulary."""

    values: dict[str, Tensor]
    """[N] each; `logps` is nearer to the truth than `picked - lse` where logits are large."""
    found: Found
    hidden_gradient: Tensor | None
    """[N, H] d logp / d hidden."""


class Engine(NamedTuple):
    """Two passes over the vocabulary, by PyTorch or by Triton."""

    sweep: Callable[[Operands, Tensor, Request], Swept]
    """(operands, labels, request) -> the log-probs and whatever is requested."""
    head_gradient: Callable[[Operands, Tensor, Found, Tensor], tuple[Tensor, Tensor | None]]
    """(operands, labels, found, upstream [N] = d loss / d logps) -> float32 gradients to weight and, if any, bias."""
