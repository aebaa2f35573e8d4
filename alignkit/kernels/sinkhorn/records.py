"""Output record and engine interface of `sinkhorn`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Gradient = Literal["unrolled", "envelope"]
GRADIENTS: tuple[Gradient, ...] = ("unrolled", "envelope")


@dataclass(frozen=True, slots=True)
class Plan:
    """The results of `sinkhorn` and of the solvers in `plans`, float32 (float64 for float64 input)."""

    plan: Tensor
    """Transport plan P [..., n, n], whose columns sum to one. Differentiable, detached if `gradient="envelope"`."""
    residual: Tensor
    """[...], the largest error of a row's sum, detached."""
    cost: Tensor
    """[...], transport cost sum_ij P_ij cost_ij, differentiable."""
    steps: int = 0
    """Steps of an iterative solver of `alignkit.kernels.plans`; 0 for a fixed number of iterations."""


class Engine(NamedTuple):
    """The two loops over the iterations, for scores [b, n, n]."""

    potentials: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    """(scores, iterations) -> f [iterations, b, n] and g [iterations + 1, b, n], whose first is g_0 = 0."""
    pull_back: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(scores, f, g, P dL/dP) -> gradient to the scores."""
