"""What goes into `linear_divergence` and comes out of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from alignkit.kernels.head import Operands

Name = Literal["student", "teacher"]

DIFFERENTIABLE: dict[Name, tuple[str, ...]] = {
    "student": ("forward_kl", "reverse_kl", "student_ce"),
    "teacher": ("teacher_reverse_kl", "teacher_ce"),
}
"""Which outputs send gradient to which side; the others are detached."""


@dataclass(frozen=True, slots=True)
class Divergences:
    """The results of `linear_divergence`: [N] each in nats, float32 (float64 for float64 input), 0 or False where the
    label is ignored. The outputs of one side never send gradient to the other."""

    forward_kl: Tensor
    """KL(p || q); gradient to the student only."""
    reverse_kl: Tensor
    """KL(q || p); gradient to the student only."""
    student_entropy: Tensor
    """H(q), detached."""
    teacher_entropy: Tensor
    """H(p), detached."""
    student_ce: Tensor | None = None
    """-log q(label) at temperature 1; gradient to the student only. None without labels, as `teacher_ce`."""
    teacher_ce: Tensor | None = None
    """-log p(label) at temperature 1; gradient to the teacher only."""
    teacher_reverse_kl: Tensor | None = None
    """KL(q || p) once more, with gradient to the teacher only; None where the teacher requires none."""
    student_top1: Tensor | None = None
    """bool, whether the label has the student's largest logit; None unless asked for."""
    teacher_top1: Tensor | None = None
    """bool, as the student's."""
    loss: Tensor | None = None
    """What the `objective` made of the others, with all their gradients; None without one."""


Objective = Callable[[Divergences], Tensor]


class Request(NamedTuple):
    """What to compute; the same for every row."""

    temperature: float
    tempered_entropy: bool
    has_masked_columns: bool
    """Whether a bias holds -inf, so that 0 * inf can arise."""
    outputs: tuple[str, ...]
    """Names of fields of `Divergences`."""
    differentiable: tuple[str, ...]
    """Those that carry gradient, or that the objective's gradient goes through."""
    objective: Callable[[Mapping[str, Tensor]], Tensor] | None

    @property
    def returned(self) -> tuple[str, ...]:
        """The outputs and the objective's loss."""
        return self.outputs if self.objective is None else (*self.outputs, "loss")

    @property
    def with_gradient(self) -> tuple[str, ...]:
        """The returned values that autograd sees."""
        return self.differentiable if self.objective is None else ("loss",) * bool(self.differentiable)

    @property
    def labelled(self) -> bool:
        """Whether there are cross-entropies."""
        return "student_ce" in self.outputs

    @property
    def top1(self) -> bool:
        """Whether to compare with the largest logits."""
        return "student_top1" in self.outputs

    @property
    def plain(self) -> bool:
        """Whether the temperature is 1."""
        return self.temperature == 1.0

    @property
    def separate_entropy(self) -> bool:
        """Whether entropies are at another temperature than the divergences."""
        return not (self.tempered_entropy or self.plain)


class HeadProduct(NamedTuple):
    """One product with a side's weight: of the weighted sum of these outputs' logit gradients."""

    side: Name
    outputs: tuple[str, ...]


class LogitGradient(NamedTuple):
    """The gradient to one side's tempered logits, coefficients [c] of its rows. `own` is its distribution.

    own (constant + away (log own - log other)) - toward other
    and, at temperature 1:  label (own1 - [v = label])
    """

    constant: Tensor
    toward: Tensor | None
    away: Tensor | None
    label: Tensor | None


def logit_gradient(side: Name, weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> LogitGradient:
    """Coefficients of sum_k weights[k] * d output_k, for the outputs named in `weights`, all of `side`."""
    toward = weights.get("forward_kl" if side == "student" else "teacher_reverse_kl")
    away = weights.get("reverse_kl")
    constant = torch.zeros_like(values["forward_kl"]) if toward is None else toward
    if away is not None:
        constant = constant - away * values["reverse_kl"]
    return LogitGradient(constant, toward, away, weights.get(f"{side}_ce"))


class Layout(NamedTuple):
    """The buffers of one chunk, used again for the next."""

    rows: int
    """Tokens of a chunk."""
    block: int
    """Rows that one `RowBlock` takes: few on a CPU, for its cache."""
    splits: int
    """Parts in which a product with [c, V] on the left is made; see `products.states`."""
    products: dict[Name, Tensor]
    """[rows, V] of each side."""
    gradients: list[Tensor]
    """[rows, V] in the weight's dtype, of each head product; the last may share its side's products' memory."""


class RowBlock(Protocol):
    """Made of c rows of products [c, V]: their values, and gradients to the products. A class of it is an engine."""

    values: dict[str, Tensor]
    """[c] each: the outputs of `Request`."""

    def __init__(
        self,
        products: Mapping[Name, Tensor],
        labels: Tensor,
        sides: Mapping[Name, Operands],
        request: Request,
    ):
        """`products` belong to the block from here on."""

    @staticmethod
    def layout(sides: Mapping[Name, Operands], count: int, products: Sequence[HeadProduct]) -> Layout:
        """Buffers for `count` tokens in chunks."""

    def gradient(self, side: Name, weights: Mapping[str, Tensor], out: Tensor) -> None:
        """`out` [c, V] = sum_k weights[k] * d output_k / d products of `side`."""
