"""A bandit with a known answer: training on its preferences must end at the optimal policy of every divergence.

max_pi E_pi[r] - beta D_f(pi || ref) over K answers to one prompt. At its optimum r = beta f'(pi / ref) + lambda. It
is solved here by bisection on lambda with the divergence's own formula written by hand. Preferences follow
Bradley-Terry with those rewards, so the f-DPO loss over all pairs, each weighted by how often it is preferred, has
that policy as its minimum.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignkit.divergences import available
from alignkit.losses import f_dpo_loss
from tests.divergence_table import DERIVATIVES

BETA = 0.5
REWARDS = torch.tensor([0.9, 0.3, -0.2, -0.7, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.3, 0.25, 0.15, 0.2], dtype=torch.float64)


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of an increasing function."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2


def optimum(name: str) -> Tensor:
    """pi_i = ref_i u_i with f'(u_i) = (r_i - lambda) / beta, lambda such that pi sums to one."""

    def policy(shift: float) -> list[float]:
        ratios = [
            math.exp(
                bisect(
                    lambda z, r=reward: DERIVATIVES[name](math.exp(z), math.log) - (r - shift) / BETA, -60, 30
                )
            )
            for reward in REWARDS.tolist()
        ]
        return [ref * ratio for ref, ratio in zip(REFERENCE.tolist(), ratios, strict=True)]

    shift = bisect(lambda value: 1 - sum(policy(value)), -20, 20)
    return torch.tensor(policy(shift), dtype=torch.float64)


def trained(name: str) -> Tensor:
    """The policy that minimises the expected loss."""
    logits = REFERENCE.log().clone().requires_grad_()
    first, second = torch.triu_indices(5, 5, offset=1)
    preferred = torch.sigmoid(REWARDS[first] - REWARDS[second])
    ref = REFERENCE.log()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-13, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logp = logits.log_softmax(-1)
        pair = [logp[first], logp[second], ref[first], ref[second]]
        there = f_dpo_loss(*pair, beta=BETA, divergence=name).losses
        back = f_dpo_loss(pair[1], pair[0], pair[3], pair[2], beta=BETA, divergence=name).losses
        value = (preferred * there + (1 - preferred) * back).sum()
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(-1)


@pytest.mark.parametrize("name", available())
def test_the_optimal_policy_is_reached(name: str) -> None:
    expected = optimum(name)
    assert float(expected.sum()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(trained(name), expected, rtol=0.01, atol=0)


def test_the_divergences_have_different_optima() -> None:
    policies = torch.stack([optimum(name) for name in available()])
    gaps = torch.cdist(policies, policies, p=1) + torch.eye(len(policies), dtype=torch.float64)
    assert float(gaps.min()) > 0.01
