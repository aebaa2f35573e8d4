"""The f-divergences of f-DPO (arXiv 2309.16240): one frozen dataclass each, a registry, and a validity check.

The regulariser is D_f(pi || pi_ref) = E_{pi_ref} f(u) with u = pi / pi_ref, f convex and f(1) = 0. The loss needs
only the *score* s(z) = f'(e^z) of the log-ratio z = ln u, up to an additive constant that cancels between chosen and
rejected. `reverse_kl`, `forward_kl`, `js_divergence` and `alpha_divergence` are from the paper. `jeffreys`,
`squared_hellinger` and `neyman_chi2` are our own derivations for the same family. `chi2_kl` is chiPO's link function
(arXiv 2407.13399); the loss around it is our reading of that paper.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.errors import DivergenceError, nearest

T = TypeVar("T")

LARGEST_CHECKED = 25.0
"""|log u| up to which a new divergence is checked: exp(25) is far beyond any ratio of a sound policy."""
STEEP = 10.0
"""The least fall of f' from u = 1e-10 to 1e-30 that is taken for an unlimited one; log u falls by 46."""
EXACT_EXPONENT = 15.0
"""Largest exponent up to which scores are exact. Beyond it they continue linearly."""


class _Widen(torch.autograd.Function):
    """Cast to float32, whose gradient saturates at the narrow type's range instead of becoming inf."""

    @staticmethod
    def forward(ctx: Any, narrow: Tensor) -> Tensor:
        ctx.dtype = narrow.dtype
        return narrow.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        limit = torch.finfo(ctx.dtype).max
        return gradient.clamp(-limit, limit).to(ctx.dtype)


def widen(values: Tensor) -> Tensor:
    """Cast to float32; wider dtypes are returned unchanged.

    The gradient to a narrower input saturates at its range: a score's slope reaches e^15, which float16 cannot hold.
    """
    return values if values.itemsize >= 4 else _Widen.apply(values)


@dataclass(frozen=True)
class FDivergence(ABC):
    """An f-divergence. A subclass defines `name`, `rate`, `generator` and `derivative`."""

    name: ClassVar[str]
    rate: ClassVar[float] = 1.0
    """The rate k of the fastest-growing e^(k|z|) in `derivative`. The linear continuation starts at |z| = 15 / k."""

    @abstractmethod
    def generator(self, u: Tensor) -> Tensor:
        """Compute f(u) for u > 0, elementwise."""

    @abstractmethod
    def derivative(self, log_ratio: Tensor) -> Tensor:
        """Compute f'(e^z) up to an additive constant, elementwise, in a form that is stable for |z| <= 15 / rate."""

    def score(self, log_ratio: Tensor) -> Tensor:
        """Compute s(z): `derivative`, continued linearly (C1, strictly increasing) beyond the exact range.

        log_ratio: any shape and float dtype. Returns the same shape in float32 (float64 stays float64). Sums of token
        log-ratios reach hundreds, where e^-z overflows. The continuation keeps value and gradient finite. It keeps
        the gradient above zero too, where a clamp would stop the training.
        """
        z = widen(log_ratio)
        limit, slope_low, slope_high = _continuation(self)
        inside = self.derivative(z.clamp(-limit, limit))
        return inside + slope_high * F.relu(z - limit) - slope_low * F.relu(-limit - z)

    @property
    def curvature(self) -> float:
        """f''(1), the slope of the score at z = 0. `match_curvature` divides beta by it."""
        return _slope(self, 0.0)

    @property
    def exact_limit(self) -> float:
        """The largest |z| for which `score` is exact."""
        return EXACT_EXPONENT / self.rate


def _slope(divergence: FDivergence, at: float) -> float:
    """d/dz f'(e^z) = u f''(u) at z, by autograd in float64."""
    with torch.enable_grad():
        z = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        value = divergence.derivative(z)
        if not value.requires_grad:
            return 0.0
        (gradient,) = torch.autograd.grad(value, z, allow_unused=True)
    return 0.0 if gradient is None else float(gradient)


@lru_cache(maxsize=256)
def _continuation(divergence: FDivergence) -> tuple[float, float, float]:
    limit = divergence.exact_limit
    return limit, _slope(divergence, -limit), _slope(divergence, limit)


@dataclass(frozen=True)
class ReverseKL(FDivergence):
    """KL(pi || pi_ref), f = u ln u. With it f-DPO is DPO."""

    name = "reverse_kl"
    rate = 1e-3  # the score is z: nothing to continue

    def generator(self, u: Tensor) -> Tensor:
        return torch.special.xlogy(u, u)

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return log_ratio


@dataclass(frozen=True)
class ForwardKL(FDivergence):
    """KL(pi_ref || pi), f = -ln u."""

    name = "forward_kl"

    def generator(self, u: Tensor) -> Tensor:
        return -u.log()

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return -torch.exp(-log_ratio)


@dataclass(frozen=True)
class JSDivergence(FDivergence):
    """f = u ln u - (u + 1) ln((u + 1) / 2), twice the usual Jensen-Shannon divergence."""

    name = "js_divergence"

    def generator(self, u: Tensor) -> Tensor:
        return torch.special.xlogy(u, u) - (u + 1) * ((u + 1) / 2).log()

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return math.log(2.0) + F.logsigmoid(log_ratio)


@dataclass(frozen=True)
class AlphaDivergence(FDivergence):
    """f = (u^(1-a) - (1-a) u - a) / (a (a-1)), a > 0; reverse KL as a -> 0, forward KL at a = 1.

    `alpha` is the paper's. TRL's `f_alpha_divergence_coef` is 1 - alpha; `get` accepts it under that name.
    """

    alpha: float = 0.5
    name = "alpha_divergence"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise DivergenceError(f"alpha_divergence: alpha must be a finite number > 0, found {self.alpha}")

    @property
    def exact_limit(self) -> float:
        return EXACT_EXPONENT / self.alpha

    def generator(self, u: Tensor) -> Tensor:
        a = self.alpha
        if abs(a - 1) < 1e-6:
            return u - 1 - u.log()
        return (u.pow(1 - a) - (1 - a) * u - a) / (a * (a - 1))

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return -torch.expm1(-self.alpha * log_ratio) / self.alpha


@dataclass(frozen=True)
class Jeffreys(FDivergence):
    """Reverse plus forward KL, f = (u - 1) ln u. Our derivation."""

    name = "jeffreys"

    def generator(self, u: Tensor) -> Tensor:
        return (u - 1) * u.log()

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return log_ratio - torch.exp(-log_ratio)


@dataclass(frozen=True)
class SquaredHellinger(FDivergence):
    """f = (sqrt u - 1)^2. Our derivation."""

    name = "squared_hellinger"
    rate = 0.5

    def generator(self, u: Tensor) -> Tensor:
        return (u.sqrt() - 1).square()

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return -torch.exp(-log_ratio / 2)


@dataclass(frozen=True)
class NeymanChi2(FDivergence):
    """f = (1 - u)^2 / u. Our derivation."""

    name = "neyman_chi2"
    rate = 2.0

    def generator(self, u: Tensor) -> Tensor:
        return (1 - u).square() / u

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return -torch.exp(-2 * log_ratio)


@dataclass(frozen=True)
class Chi2KL(FDivergence):
    """chiPO's mixed regulariser, f = (u - 1)^2 / 2 + u ln u. Its score grows as e^z for positive z."""

    name = "chi2_kl"

    def generator(self, u: Tensor) -> Tensor:
        return (u - 1).square() / 2 + torch.special.xlogy(u, u)

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return log_ratio + torch.exp(log_ratio)


BUILT_IN: tuple[type[FDivergence], ...] = (
    ReverseKL,
    ForwardKL,
    JSDivergence,
    AlphaDivergence,
    Jeffreys,
    SquaredHellinger,
    NeymanChi2,
    Chi2KL,
)
_registry: dict[str, Callable[..., FDivergence]] = {cls.name: cls for cls in BUILT_IN}


def available() -> tuple[str, ...]:
    """Return the names that `get` accepts, built-in ones first."""
    return tuple(_registry)


def get(name: str, **params: float) -> FDivergence:
    """Return the divergence `name` with its parameters. `name` may be an import path, "package.module:Name".

    `alpha_divergence` takes `alpha` (the paper's) or `f_alpha_divergence_coef` (TRL's, 1 - alpha), not both.
    Raises DivergenceError for an unknown name or parameter, and for an imported divergence that fails `check`.
    """
    if ":" in name:
        return _imported(name, params)
    if name not in _registry:
        known = available()
        raise DivergenceError(
            f"unknown divergence {name!r}: expected one of {', '.join(known)}{nearest(name, known)}"
        )
    if "f_alpha_divergence_coef" in params and name == AlphaDivergence.name:
        if "alpha" in params:
            raise DivergenceError(
                "alpha_divergence: give alpha or f_alpha_divergence_coef (1 - alpha), not both"
            )
        params = {"alpha": 1.0 - params["f_alpha_divergence_coef"]}
    return construct(name, _registry[name], params)


def construct(name: str, factory: Callable[..., T], options: dict[str, float], noun: str = "parameter") -> T:
    """Make a divergence of either kind from its dataclass. Raises DivergenceError for an unknown option.

    `noun`: what the message calls an option.
    """
    known = {field.name for field in fields(factory)} if isinstance(factory, type) else set()
    if unknown := set(options) - known:
        takes = ", ".join(sorted(known)) or "none"
        raise DivergenceError(f"{name} has no {noun} {', '.join(sorted(unknown))}; its {noun}s: {takes}")
    return factory(**options)


def imported(path: str) -> Any:
    """Import what "package.module:Name" names. Raises DivergenceError if it cannot be imported."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DivergenceError(f"divergence {path!r} cannot be imported: {error}") from error


def _imported(path: str, params: dict[str, float]) -> FDivergence:
    found = imported(path)
    divergence = found if isinstance(found, FDivergence) else None
    if isinstance(found, type) and issubclass(found, FDivergence):
        divergence = construct(path, found, params)
    if divergence is None:
        raise DivergenceError(f"divergence {path!r} is not an alignkit.divergences.FDivergence")
    check(divergence)
    return divergence


def register(divergence: FDivergence | type[FDivergence]) -> None:
    """Make a user's divergence available under its name.

    Raises DivergenceError if the name is taken, or if `check` refuses the divergence.
    """
    instance = divergence() if isinstance(divergence, type) else divergence
    if instance.name in _registry:
        raise DivergenceError(f"a divergence named {instance.name!r} is already registered")
    check(instance)
    _registry[instance.name] = divergence if isinstance(divergence, type) else lambda: instance


def check(divergence: FDivergence) -> None:
    """Raise DivergenceError, naming the failed condition, unless the divergence is valid for f-DPO.

    Conditions: f(1) = 0. `derivative` is the derivative of `generator` up to a constant. f' is strictly increasing
    (f'' > 0), so that reward and policy determine each other. f'(0+) = -inf, so that the optimal policy keeps
    probability wherever the reference has some, and only a constant per prompt is left to cancel.
    """
    name = divergence.name
    at_one = float(divergence.generator(torch.ones((), dtype=torch.float64)))
    if not abs(at_one) < 1e-9:
        raise DivergenceError(f"{name}: f(1) must be 0, found {at_one:g}")
    grid = torch.linspace(-divergence.exact_limit, divergence.exact_limit, 121, dtype=torch.float64)
    grid = grid.clamp(-LARGEST_CHECKED, LARGEST_CHECKED)
    slopes = torch.tensor([_slope(divergence, float(z)) for z in grid])
    if not bool((slopes > 0).all()):
        worst = float(grid[int(slopes.nan_to_num(-math.inf).argmin())])
        raise DivergenceError(
            f"{name}: f' must be strictly increasing (f'' > 0), but it is not at u = {math.exp(worst):.3g}"
        )
    near_zero, nearer_zero = (
        float(divergence.derivative(torch.tensor(math.log(u), dtype=torch.float64))) for u in (1e-10, 1e-30)
    )
    if not nearer_zero < near_zero - STEEP:
        raise DivergenceError(
            f"{name}: f'(0+) must be -infinity, but it is finite (f'(1e-10) = {near_zero:.4g}, "
            f"f'(1e-30) = {nearer_zero:.4g}), so the optimal policy could drop answers that the reference gives"
        )
    _check_derivative(divergence)


def _check_derivative(divergence: FDivergence) -> None:
    points = 41
    u = torch.logspace(-2, 2, points, dtype=torch.float64).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(divergence.generator(u).sum(), u)
    gap = slope - divergence.derivative(u.detach().log())
    at_one = points // 2
    if not float((gap - gap[at_one]).abs().max()) < 1e-6 * (1 + float(slope.abs().max())):
        raise DivergenceError(
            f"{divergence.name}: `derivative` is not the derivative of `generator` up to a constant"
        )
