"""MaPO against its definition, at its limits, and from recipe and job."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.errors import RecipeError
from alignkit.losses import PairLogps
from alignkit.methods import MaPO
from alignkit.methods.mapo import bounded_likelihood
from tests.jobs import job_of


def pairs(chosen: Tensor, rejected: Tensor, tokens: int = 1) -> PairLogps:
    """Pairs of answers with mean NLLs `chosen` and `rejected` [B], of `tokens` tokens each."""
    absent: Any = None
    count = torch.full(chosen.shape, tokens)
    return PairLogps(-chosen * tokens, -rejected * tokens, absent, absent, count, count)


def nlls(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def defined(beta: float, gain: float, scale: float, better: float, worse: float) -> float:
    """The loss as the paper writes it, in Python floats."""

    def phi(nll: float) -> float:
        return scale * nll / (math.exp(scale * nll) - 1)

    return better + beta * math.log1p(math.exp(-gain * (phi(better) - phi(worse))))


def test_the_loss_is_its_definition() -> None:
    better, worse = (0.3, 1.0, 2.5, 7.0), (1.1, 1.0, 0.4, 3.0)
    found = MaPO(beta=0.7, gain=6, scale=0.8).loss(pairs(nlls(*better), nlls(*worse), tokens=5))
    expected = [defined(0.7, 6, 0.8, *pair) for pair in zip(better, worse, strict=True)]
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-12)


def test_rewards_are_the_bounded_likelihoods_inside_the_logit() -> None:
    found = MaPO(gain=6, scale=0.8).loss(pairs(nlls(2.0), nlls(0.5)))
    assert float(found.chosen_rewards) == pytest.approx(6 * 1.6 / (math.exp(1.6) - 1))
    assert float(found.rejected_rewards) == pytest.approx(6 * 0.4 / (math.exp(0.4) - 1))
    assert not found.chosen_rewards.requires_grad


def test_gradients_are_those_of_central_differences() -> None:
    method, step = MaPO(beta=0.9, gain=8), 1e-6
    points = [(0.001, 0.5), (0.019999, 0.020001), (0.5, 2.0), (4.0, 0.1), (9.0, 12.0)]
    better, worse = nlls(*(p[0] for p in points)), nlls(*(p[1] for p in points))
    method.loss(pairs(better, worse)).losses.sum().backward()
    for row, (l_w, l_l) in enumerate(points):
        for side, (dw, dl) in ((better, (step, 0.0)), (worse, (0.0, step))):
            ends = [defined(0.9, 8, 0.5, l_w + k * dw, l_l + k * dl) for k in (1, -1)]
            assert float(side.grad[row]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)  # type: ignore[index]


def test_equal_answers_cost_the_nll_plus_beta_ln_2() -> None:
    found = MaPO(beta=0.4).loss(pairs(nlls(0.2, 3.0), nlls(0.2, 3.0)))
    assert found.losses.tolist() == pytest.approx([0.2 + 0.4 * math.log(2), 3.0 + 0.4 * math.log(2)])


def test_beta_0_is_supervised_training_on_the_chosen_answer() -> None:
    better, worse = nlls(0.7, 2.0), nlls(1.5, 0.3)
    found = MaPO(beta=0).loss(pairs(better, worse)).losses
    found.sum().backward()
    assert torch.equal(found, better)
    assert better.grad is not None
    assert worse.grad is not None
    assert better.grad.tolist() == [1, 1]
    assert not worse.grad.any()


def test_the_chosen_answer_is_raised_and_the_rejected_one_lowered() -> None:
    better, worse = nlls(0.1, 1.0, 6.0), nlls(0.1, 6.0, 1.0)
    MaPO().loss(pairs(better, worse)).losses.sum().backward()
    assert better.grad is not None
    assert worse.grad is not None
    assert bool((better.grad > 1).all())  # more than supervised training alone
    assert bool((worse.grad < 0).all())


def test_swapping_the_answers_changes_only_the_sign_of_the_logit() -> None:
    l_w, l_l = nlls(0.4, 2.0), nlls(1.3, 0.6)
    method = MaPO(beta=1)
    apart = [method.loss(pairs(a, b)) for a, b in ((l_w, l_l), (l_l, l_w))]
    margins = [found.losses - first for found, first in zip(apart, (l_w, l_l), strict=True)]
    logit = apart[0].chosen_rewards - apart[0].rejected_rewards
    torch.testing.assert_close(margins[1] - margins[0], logit)  # -lsig(-x) + lsig(x) = x


def test_a_small_scale_gives_simpos_margin_without_gamma() -> None:
    l_w, l_l, scale = nlls(0.4, 2.0), nlls(1.3, 0.6), 1e-6
    found = MaPO(beta=0.3, gain=10 / 1e-3, scale=scale).loss(pairs(l_w, l_l)).losses
    margin = 10 / 1e-3 * scale * (l_l - l_w) / 2
    torch.testing.assert_close(
        found, l_w - 0.3 * torch.nn.functional.logsigmoid(margin), rtol=1e-7, atol=1e-7
    )


def test_the_bounded_likelihood_is_minus_p_ln_p_over_1_minus_p() -> None:
    x = torch.logspace(-5, 2, 60, dtype=torch.float64)
    p = torch.exp(-x)
    torch.testing.assert_close(bounded_likelihood(x), -p * p.log() / -torch.expm1(-x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("nll", [0.0, 1e-8, 0.0399999, 200.0, 1000.0])
def test_float32_is_finite_at_any_likelihood(nll: float) -> None:
    better, worse = nlls(nll, 1.0, dtype=torch.float32), nlls(1.0, nll, dtype=torch.float32)
    found = MaPO().loss(pairs(better, worse)).losses
    found.sum().backward()
    for values in (found, better.grad, worse.grad):
        assert values is not None
        assert bool(torch.isfinite(values).all())
    slope = torch.autograd.grad(bounded_likelihood(better)[0], better)[0][0]
    assert -0.5 <= float(slope) <= 0


def test_a_job_becomes_a_recipe() -> None:
    plain = job_of("mapo")
    assert plain.recipe.method == MaPO()
    assert plain.hyperparameters["beta"] == 0.1
    assert plain.recipe.training.learning_rate == pytest.approx(2e-4)
    assert job_of("mapo", beta=0.5, gain=4, scale=1).recipe.method == MaPO(beta=0.5, gain=4.0, scale=1.0)


@pytest.mark.parametrize("name", ["divergence", "length_normalization"])
def test_an_option_of_f_dpo_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"method\.mapo\.hyperparameters\.{name}"):
        job_of("mapo", **{name: "jeffreys"})
