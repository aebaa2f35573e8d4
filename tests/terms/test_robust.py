"""Worst-case weights against solvers that know nothing of their closed forms."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.optimize import minimize
from torch import Tensor

from alignkit.terms.early_learning import EarlyLearning
from alignkit.terms.robust import Robust, normal_threshold, worst_weights
from tests.terms.views import setup, step, view

LOSSES = torch.tensor([0.2, 1.5, 0.7, 3.0, 0.1], dtype=torch.float64)
SHARES = torch.tensor([0.1, 0.3, 0.25, 0.15, 0.2], dtype=torch.float64)


def solved(divergence: str, strength: float) -> np.ndarray:
    """Weights of the definition's maximum, by a solver of constrained programs."""
    values, shares = LOSSES.numpy(), SHARES.numpy()

    def penalty(w: np.ndarray) -> np.ndarray:
        safe = np.maximum(w, 1e-300)
        return safe * np.log(safe) if divergence == "kl" else (w - 1) ** 2

    found = minimize(
        lambda w: -(shares @ (w * values)) + strength * (shares @ penalty(w)),
        np.ones(5),
        bounds=[(0, None)] * 5,
        constraints={"type": "eq", "fun": lambda w: shares @ w - 1},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return np.asarray(found.x)


@pytest.mark.parametrize("divergence", ["kl", "chi2"])
@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
def test_weights_maximise_the_penalised_loss(divergence: str, strength: float) -> None:
    found = worst_weights(LOSSES, SHARES, strength, divergence)
    assert float(SHARES @ found) == pytest.approx(1.0)
    np.testing.assert_allclose(found, solved(divergence, strength), atol=2e-4)


@pytest.mark.parametrize("divergence", ["kl", "chi2"])
def test_the_limits_are_the_mean_and_the_worst_row(divergence: str) -> None:
    assert torch.allclose(worst_weights(LOSSES, SHARES, 1e6, divergence), torch.ones(5).double(), atol=1e-5)
    worst = worst_weights(LOSSES, SHARES, 1e-3, divergence)
    assert worst.argmax() == LOSSES.argmax()
    assert float(SHARES[3] * worst[3]) == pytest.approx(1.0)


def test_a_constant_added_to_all_losses_leaves_the_weights() -> None:
    for divergence in ("kl", "chi2"):
        moved = worst_weights(LOSSES + 7, SHARES, 0.5, divergence)
        torch.testing.assert_close(moved, worst_weights(LOSSES, SHARES, 0.5, divergence))


def test_linear_weights_are_one_plus_the_scaled_excess_while_all_are_positive() -> None:
    mean = SHARES @ LOSSES
    expected = 1 + (LOSSES - mean) / (2 * 5.0)
    torch.testing.assert_close(worst_weights(LOSSES, SHARES, 5.0, "chi2"), expected)


def test_weights_inside_groups_times_weights_of_groups_are_the_unstructured_weights() -> None:
    torch.manual_seed(0)
    losses, group, c = torch.rand(12).double() * 3, torch.arange(12) % 3, 0.7
    rates = torch.full((12,), 1 / 12, dtype=torch.float64)
    inside, risks = torch.zeros(12).double(), torch.zeros(3).double()
    for one in range(3):
        own = losses[group == one]
        inside[group == one] = worst_weights(own, torch.full((4,), 0.25).double(), c, "kl")
        risks[one] = c * (torch.logsumexp(own / c, 0) - math.log(4))
    across = worst_weights(risks, torch.full((3,), 1 / 3).double(), c, "kl")
    torch.testing.assert_close(inside * across[group], worst_weights(losses, rates, c, "kl"))
    whole = c * (torch.logsumexp(losses / c, 0) - math.log(12))
    assert losses.mean() <= risks.mean() <= whole


@pytest.mark.parametrize("deviation", [0.0, 1e-3, 0.5, 2.0, 30.0])
def test_the_threshold_of_a_normal_loss_leaves_the_wanted_excess(deviation: float) -> None:
    mean, c = torch.tensor([1.3]).double(), 0.6
    eta = normal_threshold(mean, torch.tensor([deviation**2]).double(), c)
    z = torch.linspace(-12, 12, 400_001).double()
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    excess = torch.trapezoid((mean + deviation * z - eta).clamp(min=0) * density, z)
    assert float(excess) == pytest.approx(2 * c, rel=1e-6)


def drawn(seed: int, count: int = 8) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("divergence", ["kl", "chi2"])
def test_the_mean_weight_over_an_epoch_is_about_one(divergence: str) -> None:
    term = Robust(strength=1.0, divergence=divergence)
    state, weights = term.begin(setup(start_loss=math.log(2))), []
    for seed in range(200):
        rows = view(drawn(seed))
        weights.append(term.apply(rows, state).weights)
        state, _ = step(term, state, rows)
    assert 0.9 < float(torch.cat(weights[50:]).mean()) < 1.1


def test_the_first_step_is_plain_where_rows_have_no_common_loss_at_the_start() -> None:
    for options in ({}, {"divergence": "chi2"}):
        term = Robust(**options)
        assert term.apply(view(drawn(0)), term.begin(setup())).weights.tolist() == [1.0] * 8


def test_the_average_moves_by_the_rate_from_the_start_loss() -> None:
    term = Robust(strength=0.5, rate=0.25)
    losses = drawn(1)
    state, _ = step(term, term.begin(setup(start_loss=math.log(2))), view(losses))
    expected = math.log(
        0.75 * math.exp(math.log(2) / 0.5) + 0.25 * float((losses.double() / 0.5).exp().mean())
    )
    assert float(state["log_mean"]) == pytest.approx(expected)
    weights = term.apply(view(losses), state).weights
    torch.testing.assert_close(weights, torch.exp(losses / 0.5 - expected))


def test_rows_of_one_structured_group_get_unstructured_weights() -> None:
    plain, structured = Robust(strength=1.0), Robust(strength=1.0, structured=True)
    one, many = plain.begin(setup()), structured.begin(setup(groups=["a"]))
    for seed in range(3):
        rows = view(drawn(seed), groups=[0] * 8)
        ours, theirs = structured.apply(rows, many).weights, plain.apply(rows, one).weights
        assert torch.equal(ours, theirs)
        one, many = step(plain, one, rows)[0], step(structured, many, rows)[0]


def test_structured_weights_do_not_move_from_group_to_group() -> None:
    term = Robust(strength=0.5, structured=True, rate=1.0)
    losses = torch.cat([drawn(0, 4), drawn(1, 4) + 5])
    rows = view(losses, groups=[0] * 4 + [1] * 4)
    state, _ = step(term, term.begin(setup(groups=["a", "b"])), rows)
    weights = term.apply(rows, state).weights
    torch.testing.assert_close(weights[:4].mean(), torch.tensor(1.0))
    torch.testing.assert_close(weights[4:].mean(), torch.tensor(1.0))


def test_the_group_with_the_higher_loss_weighs_more_and_the_mean_weight_is_one() -> None:
    term = Robust(over="groups", rate=1.0)
    rows = view(torch.tensor([0.2] * 6 + [0.9] * 2), groups=[0] * 6 + [1] * 2)
    begun = setup(groups=["a", "b"])
    begun = type(begun)(8, 8, ("a", "b"), (6, 2), None)
    state, _ = step(term, term.begin(begun), rows)
    weights = term.apply(rows, state).weights.double()
    expected = worst_weights(
        torch.tensor([0.2, 0.9]).double(), torch.tensor([0.75, 0.25]).double(), 0.2, "kl"
    )
    torch.testing.assert_close(weights, expected[rows.groups])
    assert float(weights.mean()) == pytest.approx(1.0)
    assert weights[7] > 10 * weights[0]


def test_trust_turns_the_weights_round() -> None:
    losses = drawn(2)
    for divergence in ("kl", "chi2"):
        term = Robust(direction="trust", strength=1.0, divergence=divergence, rate=1.0)
        state, _ = step(term, term.begin(setup()), view(losses))
        weights = term.apply(view(losses), state).weights
        assert torch.equal(weights.argsort(), losses.argsort(descending=True))


def test_a_weight_stays_below_its_bound_and_finite() -> None:
    term = Robust(strength=0.01, max_weight=3.0)
    weights = term.apply(view(torch.tensor([1e4, 0.5])), term.begin(setup(start_loss=math.log(2)))).weights
    assert weights.tolist()[0] == 3.0
    assert 0 <= weights.tolist()[1] < 1


def test_no_gradient_goes_through_the_weights() -> None:
    losses = drawn(3).requires_grad_()
    term = Robust(strength=1.0)
    effect = term.apply(view(losses), term.begin(setup(start_loss=0.6)))
    assert not effect.weights.requires_grad


def test_structured_is_for_rows_only() -> None:
    with pytest.raises(ValidationError, match="expected over: rows, found groups"):
        Robust(over="groups", structured=True)


@pytest.mark.parametrize(("strength", "refused"), [(None, False), (1.0, True)])
def test_weights_that_favour_mislabelled_rows_are_refused_beside_early_learning(
    strength: float | None, refused: bool
) -> None:
    issues = list(Robust(strength=strength).refusals(None, [EarlyLearning()]))
    assert bool(issues) is refused
