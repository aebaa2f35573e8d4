"""Divergences over tokens: values against sum p f(q / p), gradients against autograd, bounds and odd input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import divergences, token_divergences
from alignkit.errors import DivergenceError
from alignkit.token_divergences import OfFDivergence, TokenDivergence

# f(u) from each divergence's definition, f(1) = 0; the base measure is the teacher's
GENERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda u: u * u.log(),
    "forward_kl": lambda u: -u.log(),
    "js_divergence": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "alpha_divergence": lambda u: 4 * (1 - u.sqrt()),
    "jeffreys": lambda u: (u - 1) * u.log(),
    "squared_hellinger": lambda u: (u.sqrt() - 1) ** 2,
    "neyman_chi2": lambda u: (1 - u) ** 2 / u,
    "chi2_kl": lambda u: (u - 1) ** 2 / 2 + u * u.log(),
    "total_variation": lambda u: (u - 1).abs() / 2,
}
F_DIVERGENCES = pytest.mark.parametrize("name", GENERATORS)
ALL = pytest.mark.parametrize("name", [*GENERATORS, "cauchy_schwarz"])
SYMMETRIC = ("js_divergence", "jeffreys", "squared_hellinger", "total_variation", "cauchy_schwarz")


@dataclass(frozen=True)
class Wrong(TokenDivergence):
    """A divergence whose pull is not its gradient."""

    name = "wrong"

    def value(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (p - q).square().sum(dim=-1)

    def pull(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        return q - p


class Squares(Wrong):
    """The squared distance of the probabilities."""

    name = "squares"

    def pull(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
        slope = 2 * q * (q - p)
        return slope - q * slope.sum(dim=-1, keepdim=True)


def logs(size: float = 2.0, rows: int = 6, vocabulary: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (teacher's, student's), float64."""
    make = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, rows, vocabulary, generator=make, dtype=torch.float64) * size
    return p.log_softmax(dim=-1), q.log_softmax(dim=-1)


def value(name: str, log_p: Tensor, log_q: Tensor, **options: float) -> Tensor:
    return token_divergences.get(name, **options).value(log_p.exp(), log_q.exp(), log_p, log_q)


def pull(name: str, log_p: Tensor, log_q: Tensor, **options: float) -> Tensor:
    return token_divergences.get(name, **options).pull(log_p.exp(), log_q.exp(), log_p, log_q)


@F_DIVERGENCES
def test_a_value_is_its_definition(name: str) -> None:
    log_p, log_q = logs()
    p, u = log_p.exp(), (log_q - log_p).exp()
    torch.testing.assert_close(value(name, log_p, log_q), (p * GENERATORS[name](u)).sum(dim=-1))


def test_the_cauchy_schwarz_value_is_its_definition() -> None:
    log_p, log_q = logs()
    p, q = log_p.exp(), log_q.exp()
    inner, own, other = ((a * b).sum(dim=-1) for a, b in ((p, q), (q, q), (p, p)))
    torch.testing.assert_close(value("cauchy_schwarz", log_p, log_q), -(inner**2 / (own * other)).log())


@ALL
def test_a_pull_is_the_gradient_by_the_students_logits(name: str) -> None:
    log_p, log_q = logs(seed=1)
    logits = log_q.clone().requires_grad_()
    value(name, log_p, logits.log_softmax(dim=-1)).sum().backward()
    found = pull(name, log_p, log_q)
    torch.testing.assert_close(found, logits.grad)
    torch.testing.assert_close(found.sum(dim=-1), torch.zeros(len(found), dtype=torch.float64))


@ALL
def test_equal_distributions_give_0_and_no_gradient(name: str) -> None:
    log_p, _ = logs()
    torch.testing.assert_close(value(name, log_p, log_p), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(pull(name, log_p, log_p), torch.zeros(6, 9, dtype=torch.float64))


@ALL
def test_the_order_of_the_vocabulary_does_not_matter(name: str) -> None:
    log_p, log_q = logs()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(value(name, log_p[:, order], log_q[:, order]), value(name, log_p, log_q))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_ones_do_not_tell_student_from_teacher(name: str) -> None:
    log_p, log_q = logs()
    torch.testing.assert_close(value(name, log_q, log_p), value(name, log_p, log_q))


@F_DIVERGENCES
def test_near_equality_all_are_half_their_curvature_times_chi2(name: str) -> None:
    if name == "total_variation":
        pytest.skip("its f has a kink at 1")
    log_p, step = logs()
    close = (log_p + 1e-4 * step).log_softmax(dim=-1)
    p, q = log_p.exp(), close.exp()
    chi2 = ((q - p) ** 2 / p).sum(dim=-1)
    curvature = divergences.get(name).curvature
    torch.testing.assert_close(
        value(name, log_p, close), curvature / 2 * chi2, rtol=5e-3, atol=0.0
    )  # the next order is 1e-4 times |step|


def test_alpha_of_a_half_is_twice_the_squared_hellinger() -> None:
    log_p, log_q = logs()
    torch.testing.assert_close(
        value("alpha_divergence", log_p, log_q, alpha=0.5), 2 * value("squared_hellinger", log_p, log_q)
    )


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.9])
def test_any_alpha_has_its_definition_and_gradient(alpha: float) -> None:
    log_p, log_q = logs(seed=2)
    mixed = (alpha * log_p + (1 - alpha) * log_q).exp().sum(dim=-1)
    expected = (1 - mixed) / (alpha * (1 - alpha))
    torch.testing.assert_close(value("alpha_divergence", log_p, log_q, alpha=alpha), expected)
    logits = log_q.clone().requires_grad_()
    value("alpha_divergence", log_p, logits.log_softmax(dim=-1), alpha=alpha).sum().backward()
    torch.testing.assert_close(pull("alpha_divergence", log_p, log_q, alpha=alpha), logits.grad)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("forward_kl", 1.0),
        ("js_divergence", 0.32),
        ("squared_hellinger", 0.39),
        ("total_variation", 0.25),
        ("cauchy_schwarz", 2.0),
    ],
)
def test_the_bounded_gradients_stay_in_their_bounds(name: str, bound: float) -> None:
    for size in (0.1, 3.0, 30.0, 300.0):
        log_p, log_q = logs(size, rows=400, vocabulary=4)
        assert float(pull(name, log_p, log_q).abs().max()) <= bound + 1e-9


def test_a_sure_and_wrong_student_has_a_gradient_without_bound_in_the_others() -> None:
    log_p = torch.tensor([[0.0, -40.0]], dtype=torch.float64).log_softmax(dim=-1)
    log_q = torch.tensor([[0.0, 0.5]], dtype=torch.float64).log_softmax(dim=-1)
    for name in ("reverse_kl", "jeffreys", "chi2_kl"):
        assert float(pull(name, log_p, log_q).abs().max()) > 2, name
    assert float(pull("neyman_chi2", log_q, log_p).abs().max()) > 2


def test_sampled_scores_average_to_the_gradient() -> None:
    """grad D = E_{v ~ q}[(s(z_v) - mean) grad ln q_v], by 200,000 samples of a vocabulary of 5."""
    log_p, log_q = logs(0.7, rows=1, vocabulary=5, seed=3)
    q = log_q.exp()[0]
    drawn = torch.multinomial(q, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    for name in ("reverse_kl", "js_divergence", "jeffreys"):
        score = divergences.get(name).derivative((log_q - log_p)[0])
        centred = (score - (q * score).sum())[drawn]
        found = torch.zeros(5, dtype=torch.float64).index_add(0, drawn, centred) / len(drawn)
        expected = pull(name, log_p, log_q)[0] + q * float(centred.mean())
        torch.testing.assert_close(found, expected, rtol=0.0, atol=6e-3)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_that_neither_model_has_change_nothing(name: str, dtype: torch.dtype) -> None:
    log_p, log_q = (log.to(dtype) for log in logs())
    nothing = torch.full((6, 2), -math.inf, dtype=dtype)
    wide_p, wide_q = (torch.cat([log, nothing], dim=1) for log in (log_p, log_q))
    torch.testing.assert_close(value(name, wide_p, wide_q), value(name, log_p, log_q))
    found = pull(name, wide_p, wide_q)
    torch.testing.assert_close(found[:, :9], pull(name, log_p, log_q))
    assert not found[:, 9:].any()


@ALL
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_column_of_one_model_only_is_finite_or_infinite_as_defined(name: str, side: str) -> None:
    whole, other = logs()
    cut = whole.clone()
    cut[:, 0] = -math.inf
    cut = cut.log_softmax(dim=-1)
    found = value(name, *((other, cut) if side == "student" else (cut, other)))
    infinite = {
        "teacher": {"reverse_kl", "jeffreys", "chi2_kl"},  # q / p is infinite
        "student": {"forward_kl", "jeffreys", "neyman_chi2"},  # p / q is
    }[side]
    assert bool(found.isinf().all() if name in infinite else found.isfinite().all())
    assert not found.isnan().any()


def test_float32_stays_finite_where_probabilities_are_0() -> None:
    log_p, log_q = (log.float() for log in logs(200.0))
    bounded = ("forward_kl", "js_divergence", "squared_hellinger", "total_variation", "cauchy_schwarz")
    for name in (*bounded, "reverse_kl", "jeffreys", "alpha_divergence"):
        assert bool(value(name, log_p, log_q).isfinite().all()), name
        assert bool(pull(name, log_p, log_q).isfinite().all()), name


@pytest.mark.parametrize("name", [n for n in GENERATORS if n != "total_variation"])
def test_an_f_divergence_of_f_dpo_gives_the_same_as_the_one_here(name: str) -> None:
    """The general form, from generator and derivative, against the form written for each."""
    log_p, log_q = logs(1.0)
    general = OfFDivergence(divergences.get(name))
    arguments = (log_p.exp(), log_q.exp(), log_p, log_q)
    torch.testing.assert_close(general.value(*arguments), value(name, log_p, log_q))
    torch.testing.assert_close(general.pull(*arguments), pull(name, log_p, log_q))


@pytest.mark.parametrize("name", ["neyman_chi2", "chi2_kl", "js_divergence"])
def test_beyond_its_range_an_f_divergence_is_finite_and_its_pull_still_the_gradient(name: str) -> None:
    log_p, log_q = logs(60.0)
    log_p[0, 0] = -math.inf
    general = OfFDivergence(divergences.get(name))
    logits = log_q.clone().requires_grad_()
    own = logits.log_softmax(dim=-1)
    found = general.value(log_p.exp(), own.exp(), log_p, own)
    found.sum().backward()
    assert bool(found.isfinite().all())
    assert logits.grad is not None
    slope = general.pull(log_p.exp(), log_q.exp(), log_p, log_q)
    assert bool(slope.isfinite().all())
    largest = float(slope.abs().max())
    torch.testing.assert_close(slope, logits.grad, rtol=1e-6, atol=1e-9 * max(1.0, largest))


def test_one_of_your_own_is_found_by_its_path() -> None:
    assert token_divergences.get(f"{__name__}:Squares") == Squares()
    assert isinstance(token_divergences.get("alignkit.divergences:Jeffreys"), OfFDivergence)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("reverse_kll", {}, "unknown divergence 'reverse_kll': expected one of .*reverse_kl"),
        ("reverse_kl", {"alpha": 0.5}, "reverse_kl has no option alpha; its options: none"),
        ("alpha_divergence", {"alpha": 1.0}, "alpha must be above 0 and below 1, found 1.0"),
        ("no.module:Name", {}, "cannot be imported"),
        (f"{__name__}:Wrong", {}, "wrong: `pull` is not the gradient of `value`"),
        (f"{__name__}:SYMMETRIC", {}, "is not an alignkit"),
    ],
)
def test_what_cannot_be_had_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DivergenceError, match=words):
        token_divergences.get(name, **options)


def test_a_registered_one_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_divergences, "_registry", dict(token_divergences._registry))
    token_divergences.register(Squares)
    assert "squares" in token_divergences.available()
    with pytest.raises(DivergenceError, match="already available"):
        token_divergences.register(Squares)
