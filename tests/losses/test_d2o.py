"""D2O's loss: an independent oracle, the method's identities, the two-pass gradient, and extreme inputs."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.losses import d2o_coefficients, d2o_loss, f_dpo_loss

STRENGTHS = {"beta": 0.3, "alpha": 0.2}


def logps(
    prompts: int = 5, samples: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random log-probs: samples under policy and reference, dispreferred answers under policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(prompts, samples), (prompts, samples), (prompts,), (prompts,)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).sub(40).to(dtype)
        for shape in shapes
    ]


def trained(values: list[Tensor]) -> list[Tensor]:
    """The log-probs with gradient on those of the policy."""
    return [value.clone().requires_grad_(index in {0, 2}) for index, value in enumerate(values)]


def oracle(values: list[Tensor], beta: float, alpha: float, mask: Tensor | None = None) -> list[float]:
    """The equation, prompt by prompt, in Python's floats."""
    policy, ref, policy_rejected, ref_rejected = (value.tolist() for value in values)
    losses = []
    for row in range(len(policy)):
        kept = [i for i in range(len(policy[row])) if mask is None or bool(mask[row, i])]
        anchor = math.fsum(policy[row][i] - ref[row][i] for i in kept) * beta / len(kept)
        margin = anchor - alpha * (policy_rejected[row] - ref_rejected[row])
        losses.append(math.log1p(math.exp(-margin)))
    return losses


def test_matches_the_equation() -> None:
    values = logps()
    result = d2o_loss(*values, **STRENGTHS)
    torch.testing.assert_close(result.losses, torch.tensor(oracle(values, 0.3, 0.2), dtype=torch.float64))


def test_masked_samples_do_not_count_whatever_they_hold() -> None:
    values = logps()
    mask = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 0] = True
    expected = torch.tensor(oracle(values, 0.3, 0.2, mask), dtype=torch.float64)
    values[0][~mask] = math.nan
    values[1][~mask] = -math.inf
    values = trained(values)
    result = d2o_loss(*values, **STRENGTHS, sample_mask=mask)
    torch.testing.assert_close(result.losses, expected)
    result.losses.sum().backward()
    assert values[0].grad is not None
    assert torch.equal(values[0].grad[~mask], torch.zeros_like(values[0].grad[~mask]))
    assert (values[0].grad[mask] < 0).all()


@pytest.mark.parametrize("floor", [None, -0.5])
def test_gradcheck(floor: float | None) -> None:
    values = trained(logps(prompts=3))
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False, False, False, True]])
    assert torch.autograd.gradcheck(
        lambda a, b: (
            d2o_loss(a, values[1], b, values[3], **STRENGTHS, sample_mask=mask, rejected_floor=floor).losses
        ),
        [values[0], values[2]],
    )


@pytest.mark.parametrize("copies", [1, 3])
def test_one_sample_or_equal_ones_is_dpo(copies: int) -> None:
    policy, ref, policy_rejected, ref_rejected = logps(samples=1)
    ours = d2o_loss(
        policy.expand(-1, copies), ref.expand(-1, copies), policy_rejected, ref_rejected, beta=0.3, alpha=0.3
    )
    dpo = f_dpo_loss(
        policy[:, 0], policy_rejected, ref[:, 0], ref_rejected, beta=0.3, divergence="reverse_kl"
    )
    torch.testing.assert_close(ours.losses, dpo.losses)
    torch.testing.assert_close(ours.chosen_rewards, dpo.chosen_rewards)
    torch.testing.assert_close(ours.rejected_rewards, dpo.rejected_rewards)


def test_the_reference_itself_costs_ln_two() -> None:
    policy, _, policy_rejected, _ = logps()
    result = d2o_loss(policy, policy, policy_rejected, policy_rejected, **STRENGTHS)
    torch.testing.assert_close(result.losses, torch.full((5,), math.log(2), dtype=torch.float64))


def test_without_the_anchor_it_is_half_beta_npo() -> None:
    policy, ref, policy_rejected, ref_rejected = logps()
    npo = 2 / 0.3 * torch.log1p(((policy_rejected - ref_rejected) * 0.3).exp())
    no_anchor = d2o_loss(policy, policy, policy_rejected, ref_rejected, beta=0.3, alpha=0.3)
    no_beta = d2o_loss(policy, ref, policy_rejected, ref_rejected, beta=0.0, alpha=0.3)
    torch.testing.assert_close(no_anchor.losses, 0.15 * npo)
    torch.testing.assert_close(no_beta.losses, 0.15 * npo)


@pytest.mark.parametrize(
    "rearrange", [lambda x: x[:, [2, 0, 3, 1]], lambda x: x.repeat(1, 2)], ids=["permuted", "duplicated"]
)
def test_the_order_and_the_copies_of_samples_do_not_matter(rearrange: Callable[[Tensor], Tensor]) -> None:
    policy, ref, *rejected = logps()
    plain = d2o_loss(policy, ref, *rejected, **STRENGTHS).losses
    torch.testing.assert_close(
        d2o_loss(rearrange(policy), rearrange(ref), *rejected, **STRENGTHS).losses, plain
    )


def test_it_is_a_lower_bound_of_the_mean_of_the_dpo_losses() -> None:
    policy, ref, policy_rejected, ref_rejected = logps(prompts=64)
    ours = d2o_loss(policy, ref, policy_rejected, ref_rejected, beta=0.3, alpha=0.3).losses
    dpo = [
        f_dpo_loss(
            policy[:, i], policy_rejected, ref[:, i], ref_rejected, beta=0.3, divergence="reverse_kl"
        ).losses
        for i in range(4)
    ]
    assert (ours < torch.stack(dpo).mean(dim=0)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("floor", [None, -0.5])
def test_two_passes_give_the_gradient_of_one(dtype: torch.dtype, floor: float | None) -> None:
    """One weight matrix behind all sequences; the second pass sees one sequence at a time."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(8, dtype=dtype, generator=generator).requires_grad_()
    samples, rejected = (torch.randn(*s, 8, dtype=dtype, generator=generator) for s in [(6, 11), (6,)])
    mask = torch.rand(6, 11, generator=generator) < 0.7
    mask[:, 0] = True
    ref, ref_rejected = (
        -(samples @ weight).square().detach() - 0.3,
        -(rejected @ weight).square().detach() + 0.2,
    )

    def score(features: Tensor) -> Tensor:
        return -(features @ (weight * 1.05)).square()

    options = {**STRENGTHS, "sample_mask": mask, "rejected_floor": floor}
    loss = d2o_loss(score(samples), ref, score(rejected), ref_rejected, **options).losses.mean()
    (one_pass,) = torch.autograd.grad(loss, weight)

    with torch.no_grad():
        scored = score(samples), score(rejected)
    coefficients = d2o_coefficients(scored[0], ref, scored[1], ref_rejected, **options)
    for coefficient, sequence in zip(coefficients.samples.flatten(), samples.reshape(-1, 8), strict=True):
        (coefficient * score(sequence)).backward()
    for coefficient, sequence in zip(coefficients.rejected, rejected, strict=True):
        (coefficient * score(sequence)).backward()
    assert weight.grad is not None
    assert (weight.grad - one_pass).norm() <= 1e-5 * one_pass.norm()
    assert (coefficients.samples[~mask] == 0).all()
    if floor is not None:
        below = scored[1] - ref_rejected < floor
        assert below.any()
        assert not below.all()
        assert torch.equal(coefficients.rejected == 0, below)


def test_the_floor_ends_the_push_below_it_and_changes_nothing_above() -> None:
    policy, ref, _, ref_rejected = logps(prompts=3)
    policy_rejected = (ref_rejected + torch.tensor([1.0, -4.9, -60.0])).requires_grad_()
    plain = d2o_loss(policy, ref, policy_rejected, ref_rejected, **STRENGTHS)
    floored = d2o_loss(policy, ref, policy_rejected, ref_rejected, **STRENGTHS, rejected_floor=-5.0)
    at_floor = d2o_loss(policy, ref, ref_rejected - 5.0, ref_rejected, **STRENGTHS)
    torch.testing.assert_close(floored.losses[:2], plain.losses[:2])
    torch.testing.assert_close(floored.losses[2], at_floor.losses[2])
    (gradient,) = torch.autograd.grad(floored.losses.sum(), policy_rejected)
    assert (gradient[:2] > 0).all()
    assert gradient[2] == 0
    assert torch.equal(floored.rejected_rewards, plain.rejected_rewards)  # the run-away still shows


def test_rewards_are_what_the_docstring_says_and_detached() -> None:
    values = trained(logps())
    result = d2o_loss(*values, **STRENGTHS)
    sample_ratios, rejected_ratios = (values[0] - values[1]).detach(), (values[2] - values[3]).detach()
    torch.testing.assert_close(result.chosen_rewards, 0.3 / 4 * sample_ratios.sum(dim=1))
    torch.testing.assert_close(result.rejected_rewards, 0.2 * rejected_ratios)
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad
    margins = result.chosen_rewards - result.rejected_rewards
    torch.testing.assert_close(result.losses, torch.log1p(torch.exp(-margins)))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.lists(st.floats(-1e4, 1e4, width=16, allow_nan=False), min_size=6, max_size=6),
    st.sampled_from([None, -20.0]),
)
def test_no_finite_input_gives_a_nan(dtype: torch.dtype, values: list[float], floor: float | None) -> None:
    given = torch.tensor(values, dtype=dtype)
    inputs = trained([given[None, :2], given[None, 2:4], given[4:5], given[5:]])
    result = d2o_loss(*inputs, **STRENGTHS, rejected_floor=floor)
    result.losses.sum().backward()
    assert result.losses.dtype == torch.float32
    for tensor in (
        result.losses,
        result.chosen_rewards,
        result.rejected_rewards,
        inputs[0].grad,
        inputs[2].grad,
    ):
        assert tensor is not None
        assert torch.isfinite(tensor).all()
    coefficients = d2o_coefficients(*inputs, **STRENGTHS, rejected_floor=floor)
    assert inputs[0].grad is not None
    torch.testing.assert_close(coefficients.samples.to(dtype), inputs[0].grad)


def test_no_prompt_is_a_differentiable_zero() -> None:
    values = trained(logps(prompts=0))
    result = d2o_loss(*values, **STRENGTHS, sample_mask=torch.ones(0, 4, dtype=torch.bool))
    assert result.losses.shape == (0,)
    result.losses.sum().backward()
    assert d2o_coefficients(*values, **STRENGTHS).samples.shape == (0, 4)


@pytest.mark.parametrize("function", [d2o_loss, d2o_coefficients])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(5, 0), 1: torch.zeros(5, 0)}, r"K >= 1 samples per prompt, found shape \[5, 0\]"),
        ({0: torch.zeros(5)}, r"policy_sample_logps must be \[B, K\]"),
        ({1: torch.zeros(5, 3)}, r"ref_sample_logps must have shape \[5, 4\], found \[5, 3\]"),
        ({2: torch.zeros(4)}, r"policy_rejected_logps must have shape \[5\], found \[4\]"),
        ({3: torch.zeros(5, 1)}, r"ref_rejected_logps must have shape \[5\], found \[5, 1\]"),
        ({"sample_mask": torch.ones(5, 3, dtype=torch.bool)}, r"sample_mask must have shape \[5, 4\]"),
        ({"sample_mask": torch.ones(5, 4)}, "sample_mask must be bool, found torch.float32"),
        ({"sample_mask": torch.arange(5)[:, None].expand(5, 4) > 1}, r"found none in rows \[0, 1\]"),
        ({"beta": -0.1}, "beta must be a finite number >= 0, found -0.1"),
        ({"alpha": math.nan}, "alpha must be a finite number >= 0, found nan"),
        ({"rejected_floor": 0.0}, "rejected_floor must be a log-ratio < 0, found 0.0"),
        ({"rejected_floor": math.nan}, "rejected_floor must be a log-ratio < 0, found nan"),
    ],
)
def test_options_without_meaning_are_refused(
    function: Callable[..., object], change: dict[int | str, object], message: str
) -> None:
    values: list[object] = [*logps()]
    options: dict[str, object] = {**STRENGTHS}
    for key, value in change.items():
        if isinstance(key, int):
            values[key] = value
        else:
            options[key] = value
    with pytest.raises(ValueError, match=message):
        function(*values, **options)
