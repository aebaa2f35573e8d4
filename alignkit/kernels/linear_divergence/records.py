"""Input and output records of `linear_divergence`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from alignkit import arguments
from alignkit.kernels import rows
from alignkit.kernels.head import Operands

Name = Literal["student", "teacher"]

DIFFERENTIABLE: dict[Name, tuple[str, ...]] = {
    "student": ("forward_kl", "reverse_kl", "student_ce", "divergence"),
    "teacher": ("teacher_reverse_kl", "teacher_ce"),
}
"""Side -> outputs that send gradient to it. All other outputs are detached."""


@dataclass(frozen=True, slots=True)
class Divergences:
    """The results of `linear_divergence` for teacher p and student q.

    [N] each, in nats, float32 (float64 for float64 input), 0 or False where the label is ignored. The outputs of one
    side never send gradient to the other.
    """

    forward_kl: Tensor
    """KL(p || q) of teacher p and student q, with gradient to the student only."""
    reverse_kl: Tensor
    """KL(q || p) of teacher p and student q, with gradient to the student only."""
    student_entropy: Tensor
    """Entropy of the student's distribution, detached."""
    teacher_entropy: Tensor
    """Entropy of the teacher's distribution, detached."""
    student_ce: Tensor | None = None
    """-log q(label) of the student at temperature 1, with gradient to the student only. None without labels."""
    teacher_ce: Tensor | None = None
    """-log p(label) of the teacher at temperature 1, with gradient to the teacher only. None without labels."""
    teacher_reverse_kl: Tensor | None = None
    """The value of `reverse_kl`, with gradient to the teacher only. None if the teacher needs no gradient."""
    student_top1: Tensor | None = None
    """Whether the label has the student's largest logit, bool. None unless requested."""
    teacher_top1: Tensor | None = None
    """Whether the label has the teacher's largest logit, bool. None unless requested."""
    divergence: Tensor | None = None
    """The `divergence` asked for, with gradient to the student only. None unless requested."""
    loss: Tensor | None = None
    """The `objective` of the other fields, through which all gradient flows. None without an objective."""


Objective = Callable[[Divergences], Tensor]


class TokenDivergence(Protocol):
    """A divergence of teacher p and student q over c rows, such as those of `alignkit.token_divergences`.

    Both methods take p, q and their logarithms, [c, V] each, float32 or float64. A logarithm may be -inf.
    """

    def value(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Compute the divergence of each row, [c], in nats."""

    def pull(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Compute the gradient of each row's value by the student's logits, [c, V]. Its rows sum to 0."""


class Request(NamedTuple):
    """The values and gradients to compute, the same for every row."""

    temperature: float
    tempered_entropy: bool
    has_masked_columns: bool
    """Whether a bias contains -inf, so that 0 * inf can arise."""
    outputs: tuple[str, ...]
    """Names of the fields of `Divergences` to compute."""
    differentiable: tuple[str, ...]
    """Outputs that carry gradient, or through which the objective's gradient flows."""
    objective: Callable[[Mapping[str, Tensor]], Tensor] | None
    divergence: TokenDivergence | None = None
    """The divergence of the output of that name; None if it is not requested."""

    @property
    def returned(self) -> tuple[str, ...]:
        """Names of the outputs, and "loss" if there is an objective."""
        return self.outputs if self.objective is None else (*self.outputs, "loss")

    @property
    def with_gradient(self) -> tuple[str, ...]:
        """Names of the returned values that carry gradient."""
        return self.differentiable if self.objective is None else ("loss",) * bool(self.differentiable)

    @property
    def labelled(self) -> bool:
        """Whether cross-entropies are computed."""
        return "student_ce" in self.outputs

    @property
    def top1(self) -> bool:
        """Whether labels are compared with the largest logits."""
        return "student_top1" in self.outputs

    @property
    def plain(self) -> bool:
        """Whether the temperature is 1."""
        return self.temperature == 1.0

    @property
    def separate_entropy(self) -> bool:
        """Whether entropies have another temperature than the divergences."""
        return not (self.tempered_entropy or self.plain)


def labelled_rows(labels: Tensor | None, count: int, vocabulary: int, ignore_index: int | None) -> rows.Rows:
    """Return the rows of `count` whose label is not ignored. Raises ValueError for one outside the vocabulary."""
    if labels is None:
        return rows.Rows(None, count)
    arguments.shaped("labels", labels, (count,))
    return rows.kept(
        labels, vocabulary, ignore_index, f"labels must be below the shared vocabulary of {vocabulary}"
    )


def targets_of(labels: Tensor | None, kept: rows.Rows, hidden: Tensor) -> Tensor:
    """Return the labels of the rows `hidden` [n, H], zeros without labels."""
    return hidden.new_zeros(len(hidden), dtype=torch.long) if labels is None else kept.take(labels)


def masked_columns(operands: Operands) -> bool:
    """Return whether the bias has a -inf; on a GPU, which would have to be waited for, whether it may."""
    bias = operands.bias
    return bias is not None and (bias.is_cuda or bool(bias.isneginf().any()))


class HeadProduct(NamedTuple):
    """One matmul with one side's weight, for the weighted sum of these outputs' logit gradients."""

    side: Name
    outputs: tuple[str, ...]


class LogitGradient(NamedTuple):
    """Coefficients [c] per row of the gradient to one side's tempered logits, `own` being that side's distribution:

        own (constant + away (log own - log other)) - toward other
        and, at temperature 1:  label (own1 - [v = label])

    None stands for zero.
    """

    constant: Tensor
    toward: Tensor | None
    away: Tensor | None
    label: Tensor | None


def logit_gradient(side: Name, weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> LogitGradient:
    """Return the coefficients of sum_k weights[k] * d output_k. `weights` names outputs of `side` only.

    The output `divergence` has another form and is left to the engine.
    """
    toward = weights.get("forward_kl" if side == "student" else "teacher_reverse_kl")
    away = weights.get("reverse_kl")
    constant = torch.zeros_like(values["forward_kl"]) if toward is None else toward
    if away is not None:
        constant = constant - away * values["reverse_kl"]
    return LogitGradient(constant, toward, away, weights.get(f"{side}_ce"))


class Layout(NamedTuple):
    """The sizes and reusable buffers of a chunk."""

    rows: int
    """Tokens per chunk."""
    block: int
    """Rows per `RowBlock`: few on a CPU, so that they fit in its cache."""
    splits: int
    """Number of parts of a matmul with [c, V] on the left; see `products.states`."""
    products: dict[Name, Tensor]
    """Side -> buffer [rows, V] for its matmul with the head."""
    gradients: list[Tensor]
    """Buffers [rows, V] in the weight's dtype, one per head product. The last may share memory with `products`."""


class RowBlock(Protocol):
    """The values of c rows of products [c, V], and gradients to the products. An engine is such a class."""

    values: dict[str, Tensor]
    """Name -> value [c], for the outputs of the request."""

    def __init__(
        self,
        products: Mapping[Name, Tensor],
        labels: Tensor,
        sides: Mapping[Name, Operands],
        request: Request,
    ):
        """Compute the values. The block may overwrite `products`."""

    @staticmethod
    def layout(sides: Mapping[Name, Operands], count: int, products: Sequence[HeadProduct]) -> Layout:
        """Return the chunk sizes and buffers for `count` tokens."""

    def gradient(self, side: Name, weights: Mapping[str, Tensor], out: Tensor) -> None:
        """Compute `out` [c, V] = sum_k weights[k] * d output_k / d products, for the products of `side`."""
