"""f-DPO's loss: the exact identities of the method, gradients, and extreme inputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.divergences import available, get
from alignkit.losses import PreferenceLoss, f_dpo_loss
from tests.divergence_table import DERIVATIVES


def slope(name: str, z: Tensor) -> Tensor:
    """s'(z) = u f''(u) at u = e^z, from f' as it is written by hand."""
    z = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(DERIVATIVES[name](z.exp(), torch.log).sum(), z)
    return found


def logps(seed: int = 0, size: int = 16, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=dtype) * 2 - 40 for _ in range(4)]


def loss(values: list[Tensor], name: str, beta: float = 0.3, **options: float) -> PreferenceLoss:
    return f_dpo_loss(*values, beta=beta, divergence=name, **options)


def test_reverse_kl_is_dpo_bitwise() -> None:
    chosen, rejected, ref_chosen, ref_rejected = logps(dtype=torch.float32)
    dpo = -F.logsigmoid(0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected)))
    assert torch.equal(loss([chosen, rejected, ref_chosen, ref_rejected], "reverse_kl").losses, dpo)


@pytest.mark.parametrize("name", available())
def test_no_difference_costs_ln_two(name: str) -> None:
    same = torch.full((3,), -12.5)
    result = loss([same] * 4, name)
    torch.testing.assert_close(result.losses, torch.full((3,), math.log(2)))


@pytest.mark.parametrize("name", available())
def test_swapping_the_pair_turns_the_margin(name: str) -> None:
    chosen, rejected, ref_chosen, ref_rejected = logps()
    there = loss([chosen, rejected, ref_chosen, ref_rejected], name)
    back = loss([rejected, chosen, ref_rejected, ref_chosen], name)
    margin = there.chosen_rewards - there.rejected_rewards
    torch.testing.assert_close(there.losses - back.losses, -margin)


@pytest.mark.parametrize("name", available())
def test_gradient_matches_the_closed_form(name: str) -> None:
    values = logps()
    values[0].requires_grad_()
    result = loss(values, name)
    (gradient,) = torch.autograd.grad(result.losses.sum(), values[0])
    z = (values[0] - values[2]).detach()
    margin = result.chosen_rewards - result.rejected_rewards
    torch.testing.assert_close(gradient, -0.3 * torch.sigmoid(-margin) * slope(name, z))


@pytest.mark.parametrize("name", available())
def test_gradcheck(name: str) -> None:
    values = [value.requires_grad_(index < 2) for index, value in enumerate(logps(size=4))]
    assert torch.autograd.gradcheck(lambda a, b: loss([a, b, values[2], values[3]], name).losses, values[:2])


def test_alpha_half_is_hellinger_at_half_the_beta() -> None:
    values = logps()
    hellinger = loss(values, "squared_hellinger", beta=0.4)
    alpha = loss(values, "alpha_divergence", beta=0.2)
    torch.testing.assert_close(hellinger.losses, alpha.losses)


def test_chipo_tends_to_dpo_where_the_policy_left_the_reference() -> None:
    chosen, ref = torch.tensor([-130.0], dtype=torch.float64), torch.tensor([-100.0], dtype=torch.float64)
    values = [chosen, chosen - 2, ref, ref]
    torch.testing.assert_close(loss(values, "chi2_kl").losses, loss(values, "reverse_kl").losses)


def test_label_smoothing_mixes_the_flipped_label() -> None:
    chosen, rejected, ref_chosen, ref_rejected = logps()
    plain = loss([chosen, rejected, ref_chosen, ref_rejected], "js_divergence").losses
    flipped = loss([rejected, chosen, ref_rejected, ref_chosen], "js_divergence").losses
    smoothed = loss([chosen, rejected, ref_chosen, ref_rejected], "js_divergence", label_smoothing=0.2).losses
    torch.testing.assert_close(smoothed, 0.8 * plain + 0.2 * flipped)


@pytest.mark.parametrize("name", available())
def test_the_robust_loss_is_unbiased_under_flipped_labels(name: str) -> None:
    chosen, rejected, ref_chosen, ref_rejected = logps()
    clean = loss([chosen, rejected, ref_chosen, ref_rejected], name).losses
    right = loss([chosen, rejected, ref_chosen, ref_rejected], name, label_smoothing=0.2, robust=True).losses
    wrong = loss([rejected, chosen, ref_rejected, ref_chosen], name, label_smoothing=0.2, robust=True).losses
    torch.testing.assert_close(0.8 * right + 0.2 * wrong, clean)


def test_rewards_are_beta_times_the_score_and_detached() -> None:
    values = [value.requires_grad_() for value in logps()]
    result = loss(values, "forward_kl", beta=0.7)
    expected = 0.7 * get("forward_kl").score((values[0] - values[2]).detach())
    torch.testing.assert_close(result.chosen_rewards, expected)
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(available()),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.lists(st.floats(-1e4, 1e4, width=16, allow_nan=False), min_size=4, max_size=4),
)
def test_no_finite_input_gives_a_nan(name: str, dtype: torch.dtype, values: list[float]) -> None:
    tensors = [torch.tensor([value], dtype=dtype) for value in values]
    tensors[0].requires_grad_()
    tensors[1].requires_grad_()
    result = loss(tensors, name)
    gradients = torch.autograd.grad(result.losses.sum(), tensors[:2])
    assert result.losses.dtype == torch.float32
    assert torch.isfinite(result.losses).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
