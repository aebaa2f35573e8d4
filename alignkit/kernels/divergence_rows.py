"""A few rows of both models' logits: what they say of each other, and the gradients of that.

With x, y the tempered logits, log q = log_softmax(x) for the student, log p = log_softmax(y) for the teacher, and
m = (1 - beta) q + beta p:

    forward = sum p (log p - log q)        d/dx = q - p
    reverse = sum q (log q - log p)        d/dx = q (log q - log p - reverse)         d/dy = p - q
    jsd     = beta KL(p||m) + (1-beta) KL(q||m)    d/dx = (1 - beta) q (log q - log m - KL(q||m))
    entropy = -sum q log q                 d/dx = -q (log q + entropy)
    ce      = -log q1[label]               d/dx = q1 - [v = label],  q1 at temperature 1

so every weighted sum of them has a gradient of one shape, which `pull` reads off.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from alignkit.kernels.heads import Head
from alignkit.kernels.sides import Side

Name = Literal["student", "teacher"]

SIDES: dict[Name, tuple[str, ...]] = {
    "student": ("forward_kl", "reverse_kl", "jsd", "student_ce", "student_entropy"),
    "teacher": ("teacher_reverse_kl", "teacher_ce", "teacher_entropy"),
}
"""Which outputs send gradient to which side."""


class Plan(NamedTuple):
    """What to compute; the same for every row."""

    temperature: float
    tempered_entropy: bool
    jsd_beta: float | None
    """Inside (0, 1); None computes no mixture."""
    holes: bool
    """Whether a bias holds -inf, so that 0 * inf can arise."""
    outputs: tuple[str, ...]
    carriers: tuple[str, ...]
    """The outputs that carry gradient, or that the objective's gradient goes through."""
    objective: Callable[[Mapping[str, Tensor]], Tensor] | None

    @property
    def returned(self) -> tuple[str, ...]:
        """The outputs and the objective's loss."""
        return self.outputs if self.objective is None else (*self.outputs, "loss")

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The outputs that autograd sees."""
        return self.carriers if self.objective is None else ("loss",) * bool(self.carriers)

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


class Pull(NamedTuple):
    """The gradient to one side's tempered logits, coefficients [c] of its rows. `own` is its distribution.

    own (constant + away (log own - log other) + mixture (log own - log m) - entropy log own) - toward other
    and, at temperature 1:  own1 (label - entropy1 (log own1 + H1)) - label [v = label]
    """

    constant: Tensor
    toward: Tensor | None
    away: Tensor | None
    mixture: Tensor | None
    entropy: Tensor | None
    label: Tensor | None
    entropy_one: Tensor | None


def pull(side: Name, weights: Mapping[str, Tensor], values: Mapping[str, Tensor], plan: Plan) -> Pull:
    """Coefficients of sum_k weights[k] * d output_k, for the outputs named in `weights`, all of `side`."""
    toward = weights.get("forward_kl" if side == "student" else "teacher_reverse_kl")
    away, jsd = weights.get("reverse_kl"), weights.get("jsd")
    mixture = None if jsd is None or plan.jsd_beta is None else jsd * (1 - plan.jsd_beta)
    entropy, entropy_one = weights.get(f"{side}_entropy"), None
    if plan.separate_entropy:
        entropy, entropy_one = None, entropy
    constant = torch.zeros_like(values["forward_kl"])
    if toward is not None:
        constant = constant + toward
    if away is not None:
        constant = constant - away * values["reverse_kl"]
    if mixture is not None:
        constant = constant - mixture * values["mixture_kl"]
    if entropy is not None:
        constant = constant - entropy * values[f"{side}_entropy"]
    return Pull(constant, toward, away, mixture, entropy, weights.get(f"{side}_ce"), entropy_one)


class Rows(Protocol):
    """Made of c rows of products [c, V]: their values, and gradients to the products."""

    small_blocks: ClassVar[bool]
    """Whether few rows at a time are faster on a CPU, for its cache; else a chunk's are taken."""
    values: dict[str, Tensor]
    """[c] each: the outputs of `Plan`, and `mixture_kl` = KL(q || m) where there is a mixture."""

    def __init__(
        self, products: Mapping[Name, Tensor], labels: Tensor, sides: Mapping[Name, Side], plan: Plan
    ):
        """`products` belong to the rows from here on."""

    def gradient(self, side: Name, weights: Mapping[str, Tensor], out: Tensor) -> None:
        """`out` [c, V] = sum_k weights[k] * d output_k / d products of `side`."""


class TorchRows:
    """`Rows` in PyTorch."""

    small_blocks: ClassVar[bool] = True

    def __init__(
        self, products: Mapping[Name, Tensor], labels: Tensor, sides: Mapping[Name, Side], plan: Plan
    ) -> None:
        self.labels, self.plan = labels[:, None], plan
        slopes = bool(plan.carriers)
        self.student, self.teacher = (
            _Distribution(products[name], sides[name], self.labels, plan, slopes=slopes) for name in SIDES
        )
        self.values = self._values()

    def _values(self) -> dict[str, Tensor]:
        q, p, plan = self.student, self.teacher, self.plan
        self.gap = p.log - q.log
        values = {
            "forward_kl": self._expect(p.prob, self.gap),
            "reverse_kl": -self._expect(q.prob, self.gap),
        }
        values["teacher_reverse_kl"] = values["reverse_kl"]
        for name, side in (("student", q), ("teacher", p)):
            log, prob = (side.log_one, side.prob_one()) if plan.separate_entropy else (side.log, side.prob)
            values[f"{name}_entropy"] = -self._expect(prob, log)
            if plan.labelled:
                values[f"{name}_ce"] = -side.log_one.gather(1, self.labels).squeeze(1)
            if side.hits is not None:
                values[f"{name}_top1"] = side.hits
        if plan.jsd_beta is not None:
            beta = plan.jsd_beta
            self.log_mixture = torch.logaddexp(q.log + math.log1p(-beta), p.log + math.log(beta))
            values["mixture_kl"] = self._expect(q.prob, q.log - self.log_mixture)
            teacher_part = self._expect(p.prob, p.log - self.log_mixture)
            values["jsd"] = beta * teacher_part + (1 - beta) * values["mixture_kl"]
        return values

    def _expect(self, prob: Tensor, value: Tensor) -> Tensor:
        """sum prob * value of each row; where prob is 0 the term is 0."""
        if self.plan.holes:
            value = value.masked_fill(prob == 0, 0.0)
        return torch.linalg.vecdot(prob, value)

    def gradient(self, side: Name, weights: Mapping[str, Tensor], out: Tensor) -> None:
        own, other = (self.student, self.teacher) if side == "student" else (self.teacher, self.student)
        constant, toward, away, mixture, entropy, label, entropy_one = (
            None if weight is None else weight[:, None]
            for weight in pull(side, weights, self.values, self.plan)
        )
        inner: Any = constant
        if away is not None:
            inner = torch.addcmul(inner, self.gap, away, value=-1)
        if mixture is not None:
            inner = inner + mixture * (own.log - self.log_mixture)
        if entropy is not None:
            inner = torch.addcmul(inner, own.log, entropy, value=-1)
        total = own.prob * inner
        if self.plan.holes:
            total.masked_fill_(own.prob == 0, 0.0)
        if toward is not None:
            total.addcmul_(other.prob, toward, value=-1)
        if not self.plan.plain:
            total /= self.plan.temperature
        if label is not None or entropy_one is not None:
            total += self._at_one(own, label, entropy_one, side)
        if own.slope is not None:
            total *= own.slope
        if own.scale != 1.0:
            total *= own.scale
        out.copy_(total)

    def _at_one(
        self, own: "_Distribution", label: Tensor | None, entropy: Tensor | None, side: Name
    ) -> Tensor:
        prob = own.prob_one()
        total = torch.zeros_like(prob) if label is None else prob * label
        if label is not None:
            total.scatter_add_(1, self.labels, -label)
        if entropy is not None:
            bent = prob * (own.log_one + self.values[f"{side}_entropy"][:, None])
            total -= entropy * (bent.masked_fill_(prob == 0, 0.0) if self.plan.holes else bent)
        return total


class _Distribution:
    """One model's rows: log-probabilities and probabilities at the temperature, and log-probabilities at 1."""

    def __init__(self, products: Tensor, side: Side, labels: Tensor, plan: Plan, *, slopes: bool) -> None:
        x, self.slope = _logits(products, side, slopes=slopes)
        self.scale = side.head.scale
        self.hits = x.argmax(dim=1) == labels.squeeze(1) if plan.top1 else None
        self.log = torch.log_softmax(x if plan.plain else x.div_(plan.temperature), dim=1)
        self.prob = self.log.exp()
        self.plain = plan.plain
        self.log_one = self.log
        if not plan.plain and (plan.labelled or plan.separate_entropy):
            # log_softmax does not see a shift, so the tempered log-probabilities are logits too
            self.log_one = torch.log_softmax(self.log * plan.temperature, dim=1)

    def prob_one(self) -> Tensor:
        """Probabilities at temperature 1."""
        return self.prob if self.plain else self.log_one.exp()


def _logits(products: Tensor, side: Side, *, slopes: bool) -> tuple[Tensor, Tensor | None]:
    """Logits [c, V] at least in float32, perhaps in place, and on request tanh' of the soft cap."""
    head: Head = side.head
    x = products.to(torch.promote_types(products.dtype, torch.float32))
    if side.bias is not None:
        x += side.bias.to(x.dtype)
    if head.scale != 1.0:
        x *= head.scale
    if head.softcap is None:
        return x, None
    x = x.div_(head.softcap).tanh_()
    steepness = 1 - x.square() if slopes else None
    return x.mul_(head.softcap), steepness
