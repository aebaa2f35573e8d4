"""Divergences of a student's next-token distribution q from a teacher's p, for distillation.

With u = q / p, z = ln u, s = f' and the teacher as base measure, an f-divergence and its gradient by the student's
logits a are

    D_f(q || p) = sum_v p_v f(u_v)        dD/da_v = g_v - q_v sum_w g_w,    g = q s(z)

The names agree with f-DPO's: `reverse_kl` is KL(q || p). `total_variation` is here too, since no link function is
inverted. The Cauchy-Schwarz divergence is no f-divergence. `get` also finds a `TokenDivergence` of your own by its
import path, and an `alignkit.divergences.FDivergence` by its name or path.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit import divergences
from alignkit.errors import DivergenceError, nearest

_LARGEST_EXPONENT = 25.0
"""Largest |z| at which an `FDivergence`'s generator is evaluated: float32 holds e^(3 z) there."""


@dataclass(frozen=True)
class TokenDivergence(ABC):
    """A divergence of teacher p and student q. A subclass defines `name`, `value` and `pull`.

    Both methods take p, q and their logarithms, [c, V] each, in float32 or float64. Logarithms may be -inf.
    """

    name: ClassVar[str]

    @abstractmethod
    def value(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Compute the divergence of each row, [c], in nats. Differentiable by q and log_q."""

    @abstractmethod
    def pull(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Compute the gradient of each row's value by the student's logits, [c, V]. Its rows sum to 0."""


class _FDivergence(TokenDivergence):
    """An f-divergence, from its summands and g = q s(z)."""

    constant: ClassVar[float] = 0.0
    """A constant that the sum of `terms` lacks."""

    @abstractmethod
    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Summands [c, V] of the value."""

    @abstractmethod
    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        """g = q s(z), [c, V], up to a multiple of q."""

    def value(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.terms(p, q, log_p, log_q).sum(dim=-1) + self.constant

    def pull(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        slope = self.slope(p, q, log_p, log_q)
        return slope - q * slope.sum(dim=-1, keepdim=True)


def _times(prob: Tensor, value: Tensor) -> Tensor:
    """prob * value. Where prob is 0 the product is 0, whatever the value."""
    return prob * value.masked_fill(prob == 0, 0.0)


def _squared_over(log_a: Tensor, log_b: Tensor) -> Tensor:
    """a^2 / b from logarithms. Where a is 0 the result is 0; where only b is 0 it is infinite."""
    return torch.exp((2 * log_a - log_b).masked_fill(log_a.isneginf(), -math.inf))


def _js(prob: Tensor, z: Tensor) -> Tensor:
    return _times(prob, math.log(2.0) + F.logsigmoid(z))


class ReverseKL(_FDivergence):
    """KL(q || p). The gradient grows with the log-ratio."""

    name = "reverse_kl"

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return _times(q, log_q - log_p)

    slope = terms


class ForwardKL(_FDivergence):
    """KL(p || q). The gradient q - p is at most 1."""

    name = "forward_kl"

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return -_times(p, log_q - log_p)

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return -p


class JSDivergence(_FDivergence):
    """Twice the Jensen-Shannon divergence, at most 2 ln 2."""

    name = "js_divergence"

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        z = log_q - log_p
        return _js(q, z) + _js(p, -z)

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return _js(q, log_q - log_p)


@dataclass(frozen=True)
class AlphaDivergence(_FDivergence):
    """(1 - sum p^a q^(1-a)) / (a (1 - a)), 0 < a < 1: towards the reverse KL as a -> 0, the forward KL as a -> 1."""

    alpha: float = 0.5
    name = "alpha_divergence"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise DivergenceError(f"alpha_divergence: alpha must be above 0 and below 1, found {self.alpha}")

    def _geometric(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return torch.exp(self.alpha * log_p + (1 - self.alpha) * log_q)

    def value(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return super().value(p, q, log_p, log_q) + 1 / (self.alpha * (1 - self.alpha))

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return -self._geometric(log_p, log_q) / (self.alpha * (1 - self.alpha))

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return -self._geometric(log_p, log_q) / self.alpha


class Jeffreys(_FDivergence):
    """KL(q || p) + KL(p || q). The gradient grows with the log-ratio."""

    name = "jeffreys"

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        z = log_q - log_p
        return _times(q, z) - _times(p, z)

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _times(q, log_q - log_p) - p


class SquaredHellinger(_FDivergence):
    """sum (sqrt q - sqrt p)^2, at most 2."""

    name = "squared_hellinger"
    constant = 2.0

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return 2 * self.slope(p, q, log_p, log_q)

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return -torch.exp((log_p + log_q) / 2)


class NeymanChi2(_FDivergence):
    """sum (p - q)^2 / q. The gradient grows as p^2 / q, which overflows where p / q exceeds about 1e19 in float32."""

    name = "neyman_chi2"
    constant = -1.0

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return _squared_over(log_p, log_q)

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return -_squared_over(log_p, log_q)


class Chi2KL(_FDivergence):
    """Half of Pearson's chi2 plus KL(q || p). The gradient grows as q^2 / p."""

    name = "chi2_kl"
    constant = -0.5

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return _squared_over(log_q, log_p) / 2 + _times(q, log_q - log_p)

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return _squared_over(log_q, log_p) + _times(q, log_q - log_p)


class TotalVariation(_FDivergence):
    """Half of sum |q - p|, at most 1."""

    name = "total_variation"

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return (q - p).abs() / 2

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return q * (q - p).sign() / 2


class CauchySchwarz(TokenDivergence):
    """-2 ln <p, q> + ln <p, p> + ln <q, q>: symmetric, and no entry of the gradient exceeds 2 for any p and q.

    The divergence of the Cauchy-Schwarz information bottleneck, in its form for discrete distributions.
    """

    name = "cauchy_schwarz"

    def value(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        of_teacher, of_student = ((2 * log).logsumexp(dim=-1) for log in (log_p, log_q))
        return of_teacher + of_student - 2 * (log_p + log_q).logsumexp(dim=-1)

    def pull(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return 2 * ((2 * log_q).softmax(dim=-1) - (log_p + log_q).softmax(dim=-1))


@dataclass(frozen=True)
class OfFDivergence(_FDivergence):
    """An `alignkit.divergences.FDivergence`, over tokens. Beyond its exact range f continues linearly in u.

    The continued f is still convex, so this is a divergence for any p and q, and its score is bounded.
    """

    family: divergences.FDivergence
    name = "f_divergence"

    def _limit(self) -> float:
        return min(self.family.exact_limit, _LARGEST_EXPONENT)

    def _clamped(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        z = (log_q - log_p).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)  # nan where both are 0
        return z.clamp(-self._limit(), self._limit())

    def _score(self, z: Tensor) -> Tensor:
        """f'(e^z), with the constant that `derivative` may lack."""
        with torch.enable_grad():
            one = torch.ones((), dtype=torch.float64, requires_grad=True)
            (at_one,) = torch.autograd.grad(self.family.generator(one), one)
        found = self.family.derivative(z)
        return found + float(at_one - self.family.derivative(torch.zeros((), dtype=torch.float64)))

    def terms(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        z = self._clamped(log_p, log_q)
        u = z.exp()
        return p * self.family.generator(u) + (q - p * u) * self._score(z)

    def slope(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:  # noqa: ARG002 - of all members
        return q * self._score(self._clamped(log_p, log_q))


BUILT_IN: tuple[type[TokenDivergence], ...] = (
    ReverseKL,
    ForwardKL,
    JSDivergence,
    AlphaDivergence,
    Jeffreys,
    SquaredHellinger,
    NeymanChi2,
    Chi2KL,
    TotalVariation,
    CauchySchwarz,
)
_registry: dict[str, Callable[..., TokenDivergence]] = {cls.name: cls for cls in BUILT_IN}


def available() -> tuple[str, ...]:
    """Return the names that `get` accepts: the built-in ones, then those registered here or for f-DPO."""
    return (*_registry, *(name for name in divergences.available() if name not in _registry))


def get(name: str, **options: float) -> TokenDivergence:
    """Return the divergence `name` with its options. `name` may be an import path, "package.module:Name".

    A path names a `TokenDivergence` or an `alignkit.divergences.FDivergence`, as a class or an object. Raises
    DivergenceError for an unknown name or option, and for an imported divergence that fails `check`.
    """
    if name in _registry:
        return divergences.construct(name, _registry[name], options, noun="option")
    if ":" in name:
        return _imported(name, options)
    if name in divergences.available():
        return OfFDivergence(divergences.get(name, **options))
    known = available()
    raise DivergenceError(
        f"unknown divergence {name!r}: expected one of {', '.join(known)}{nearest(name, known)}"
    )


def register(divergence: type[TokenDivergence]) -> None:
    """Make a divergence of your own available under its name.

    Raises DivergenceError if the name is taken, or if `check` refuses the divergence.
    """
    if divergence.name in available():
        raise DivergenceError(f"a divergence named {divergence.name!r} is already available")
    check(divergence())
    _registry[divergence.name] = divergence


def check(divergence: TokenDivergence) -> None:
    """Raise DivergenceError unless the value is 0 at p = q and `pull` is the gradient of `value`, on an example."""
    make = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 4, 7, generator=make, dtype=torch.float64)
    log_p = teacher.log_softmax(dim=-1)
    same = divergence.value(log_p.exp(), log_p.exp(), log_p, log_p)
    if same.shape != (4,) or not bool((same.abs() < 1e-9).all()):
        raise DivergenceError(
            f"{divergence.name}: `value` must be [c], and 0 where p = q; found {same.tolist()}"
        )
    with torch.enable_grad():
        leaf = logits.requires_grad_()
        log_q = leaf.log_softmax(dim=-1)
        (expected,) = torch.autograd.grad(
            divergence.value(log_p.exp(), log_q.exp(), log_p, log_q).sum(), leaf
        )
    log_q = log_q.detach()
    found = divergence.pull(log_p.exp(), log_q.exp(), log_p, log_q)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-6, atol=1e-9):
        raise DivergenceError(
            f"{divergence.name}: `pull` is not the gradient of `value` by the student's logits"
        )


def _imported(path: str, options: dict[str, float]) -> TokenDivergence:
    found = divergences.imported(path)
    if isinstance(found, type) and issubclass(found, TokenDivergence):
        found = divergences.construct(path, found, options, noun="option")
    if isinstance(found, TokenDivergence):
        check(found)
        return found
    return OfFDivergence(divergences.get(path, **options))
