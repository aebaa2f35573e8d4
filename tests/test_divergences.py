"""The divergence family against autograd, and the theory's conditions."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit import divergences
from alignkit.errors import DivergenceError
from tests.divergence_table import DERIVATIVES

ALL = [divergences.get(name) for name in divergences.available()] + [
    divergences.get("alpha_divergence", alpha=a) for a in (0.01, 0.3, 1.0, 2.0)
]


def by_name(divergence: divergences.FDivergence) -> str:
    return f"{divergence.name}{getattr(divergence, 'alpha', '')}"


def test_names_are_trls_and_the_extensions() -> None:
    assert divergences.available() == tuple(DERIVATIVES)
    trls = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    assert divergences.available()[:4] == trls


@pytest.mark.parametrize("divergence", ALL, ids=by_name)
def test_score_is_the_generators_derivative_up_to_a_constant(divergence: divergences.FDivergence) -> None:
    z = torch.linspace(-4, 4, 41, dtype=torch.float64)
    u = z.exp().requires_grad_()
    (slope,) = torch.autograd.grad(divergence.generator(u).sum(), u)
    gap = divergence.score(z) - slope
    torch.testing.assert_close(gap, gap[20].expand(41), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_curvature_is_the_second_derivative_at_one(name: str) -> None:
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    (second,) = torch.autograd.grad(DERIVATIVES[name](one, torch.log), one)
    assert divergences.get(name).curvature == pytest.approx(float(second), rel=1e-9)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_is_the_one_written_by_hand(name: str) -> None:
    z = torch.linspace(-4, 4, 41, dtype=torch.float64)
    gap = divergences.get(name).derivative(z) - DERIVATIVES[name](z.exp(), torch.log)
    torch.testing.assert_close(gap, gap[20].expand(41), rtol=1e-9, atol=1e-9)  # up to a constant


@pytest.mark.parametrize("divergence", ALL, ids=by_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_score_and_gradient_hold_at_ten_thousand(
    divergence: divergences.FDivergence, dtype: torch.dtype
) -> None:
    z = torch.tensor([-1e4, -9e3, -500.0, -88.0, -20.0, 0.0, 20.0, 88.0, 500.0, 9e3, 1e4]).to(dtype)
    z.requires_grad_()
    score = divergence.score(z)
    (slope,) = torch.autograd.grad(score.sum(), z)
    assert torch.isfinite(score).all()
    assert (score.diff() > 0).all()
    assert torch.isfinite(slope).all()
    assert (slope > 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(ALL),
    st.lists(st.floats(-1e4, 1e4, width=32, allow_nan=False), min_size=2, max_size=20),
)
def test_score_never_decreases(divergence: divergences.FDivergence, values: list[float]) -> None:
    score = divergence.score(torch.tensor(sorted(values)))
    assert torch.isfinite(score).all()
    assert (score.diff() >= 0).all()


@pytest.mark.parametrize("divergence", ALL, ids=by_name)
def test_score_is_exact_up_to_the_limit_and_smooth_there(divergence: divergences.FDivergence) -> None:
    limit = divergence.exact_limit
    edge = torch.tensor([-limit, limit], dtype=torch.float64)
    torch.testing.assert_close(divergence.score(edge), divergence.derivative(edge), rtol=1e-12, atol=0)
    step = 1e-6 * limit
    inside = divergence.score(edge) - divergence.score(edge * (1 - 1e-6))
    outside = divergence.score(edge * (1 + 1e-6)) - divergence.score(edge)
    torch.testing.assert_close(inside / step, outside / step, rtol=1e-3, atol=1e-6)


def test_alpha_ends_are_the_two_kls() -> None:
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    near_zero = divergences.get("alpha_divergence", alpha=1e-8).score(z)
    torch.testing.assert_close(near_zero, z, atol=1e-7, rtol=0)
    one = divergences.get("alpha_divergence", alpha=1.0).score(z)
    torch.testing.assert_close(one, divergences.get("forward_kl").score(z) + 1, atol=1e-12, rtol=0)


def test_trls_coefficient_is_taken_by_its_own_name_only() -> None:
    assert divergences.get("alpha_divergence", f_alpha_divergence_coef=0.3) == divergences.get(
        "alpha_divergence", alpha=0.7
    )
    with pytest.raises(DivergenceError, match="not both"):
        divergences.get("alpha_divergence", alpha=0.7, f_alpha_divergence_coef=0.3)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("tv", {}, "unknown divergence 'tv': expected one of reverse_kl"),
        ("reverse_kl", {"alpha": 0.5}, "no parameter alpha"),
        ("alpha_divergence", {"alpha": 0.0}, "alpha must be"),
        ("alpha_divergence", {"alpha": math.nan}, "alpha must be"),
        ("no.such.module:X", {}, "cannot be imported"),
        ("math:sqrt", {}, "is not an alignkit"),
    ],
)
def test_bad_choices_are_refused_by_name(name: str, params: dict[str, float], message: str) -> None:
    with pytest.raises(DivergenceError, match=message):
        divergences.get(name, **params)


@dataclass(frozen=True)
class TotalVariation(divergences.FDivergence):
    name = "total_variation"

    def generator(self, u: Tensor) -> Tensor:
        return (u - 1).abs() / 2

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return torch.sign(log_ratio) / 2


@dataclass(frozen=True)
class PearsonChi2(divergences.FDivergence):
    name = "pearson_chi2"

    def generator(self, u: Tensor) -> Tensor:
        return (u - 1).square()

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return 2 * log_ratio.expm1()


@dataclass(frozen=True)
class Mismatched(divergences.ForwardKL):
    name = "mismatched"

    def generator(self, u: Tensor) -> Tensor:
        return 2 * u.log().neg()


@dataclass(frozen=True)
class RepairedPearson(divergences.FDivergence):
    name = "repaired_pearson"
    epsilon: float = 0.5

    def generator(self, u: Tensor) -> Tensor:
        return (u - 1).square() + self.epsilon * torch.special.xlogy(u, u)

    def derivative(self, log_ratio: Tensor) -> Tensor:
        return 2 * log_ratio.exp() + self.epsilon * log_ratio


@pytest.mark.parametrize(
    ("divergence", "condition"),
    [
        (TotalVariation, "strictly increasing"),
        (PearsonChi2, r"f'\(0\+\) must be -infinity"),
        (Mismatched, "not the derivative of"),
    ],
)
def test_register_names_the_condition_that_fails(
    divergence: type[divergences.FDivergence], condition: str
) -> None:
    with pytest.raises(DivergenceError, match=condition):
        divergences.register(divergence)
    assert divergence.name not in divergences.available()


def test_a_valid_divergence_can_be_registered_once_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergences, "_registry", dict(divergences._registry))
    divergences.register(RepairedPearson)
    assert divergences.get("repaired_pearson", epsilon=1.0).curvature == pytest.approx(3.0)
    with pytest.raises(DivergenceError, match="already registered"):
        divergences.register(RepairedPearson)


def test_an_import_path_is_taken_and_checked() -> None:
    found = divergences.get(f"{__name__}:RepairedPearson", epsilon=0.25)
    assert found.name == "repaired_pearson"
    with pytest.raises(DivergenceError, match="strictly increasing"):
        divergences.get(f"{__name__}:TotalVariation")
