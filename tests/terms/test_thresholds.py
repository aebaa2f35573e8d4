"""The thresholds term against its formula, and DPO-Positive's hinge."""

import pytest
import torch
from pydantic import ValidationError

from alignkit.terms.thresholds import Thresholds
from tests.terms.views import setup, step, view


def rewards(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_without_a_hard_row_there_is_no_loss_and_no_gradient() -> None:
    term, chosen, rejected = Thresholds(rejected_weight=1.0), rewards(0.5, 2.0), rewards(-3.0, -1.5)
    extra = term.apply(view(torch.zeros(2), chosen=chosen, rejected=rejected), term.begin(setup())).extra
    assert extra.tolist() == [0.0, 0.0]
    slopes = torch.autograd.grad(extra.sum(), (chosen, rejected))
    assert [slope.tolist() for slope in slopes] == [[0.0, 0.0], [0.0, 0.0]]


def test_each_hard_row_is_pulled_with_one_over_their_number() -> None:
    term = Thresholds(chosen_floor=0.0, rejected_ceiling=-1.0, rejected_weight=2.0, rate=1.0)
    chosen, rejected = rewards(0.0, -2.0, 1.0, 3.0), rewards(-1.0, 0.0, -0.5, -4.0)
    rows = view(torch.zeros(4), chosen=chosen, rejected=rejected)
    state, _ = step(term, term.begin(setup(batch=4)), rows)
    mean = term.apply(rows, state).extra.mean()  # over the step's rows
    assert float(mean) == pytest.approx(2.0 / 2 + 2 * (0.0 + 1.0 + 0.5) / 3)
    slopes = torch.autograd.grad(mean, (chosen, rejected))
    torch.testing.assert_close(slopes[0], torch.tensor([-0.5, -0.5, 0, 0]).double())
    torch.testing.assert_close(slopes[1], torch.tensor([2 / 3, 2 / 3, 2 / 3, 0]).double())


def test_a_floor_of_zero_is_the_hinge_of_dpo_positive_over_the_hard_rows() -> None:
    term = Thresholds(chosen_weight=5.0, rate=1.0)
    log_ratios = torch.tensor([-3.0, 2.0, -0.5, 0.7]).double()
    rows = view(torch.zeros(4), chosen=0.1 * log_ratios, rejected=torch.full((4,), -9.0).double())
    state, _ = step(term, term.begin(setup(batch=4)), rows)
    hinge = torch.tensor([max(0.0, -ratio) for ratio in log_ratios.tolist()])  # max(0, log pi_ref - log pi)
    assert float(term.apply(rows, state).extra.mean()) == pytest.approx(5.0 * 0.1 * float(hinge.sum()) / 2)


def test_a_lone_hard_row_counts_as_one_of_the_step() -> None:
    term = Thresholds(rate=1.0)
    easy = view(torch.zeros(4), chosen=torch.ones(4), rejected=-2 * torch.ones(4))
    state, _ = step(term, term.begin(setup(batch=4)), easy)
    hard = view(torch.zeros(4), chosen=torch.tensor([-1.0, 1, 1, 1]), rejected=-2 * torch.ones(4))
    assert term.apply(hard, state).extra.tolist() == [4.0, 0.0, 0.0, 0.0]


def test_it_is_finite_in_float32_at_extreme_rewards() -> None:
    term = Thresholds(rejected_weight=1.0)
    rows = view(torch.zeros(2), chosen=torch.tensor([-1e4, 1e4]), rejected=torch.tensor([1e4, -1e4]))
    assert torch.isfinite(term.apply(rows, term.begin(setup())).extra).all()


def test_a_floor_at_or_below_the_ceiling_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected more than rejected_ceiling -1, found -1"):
        Thresholds(chosen_floor=-1.0)
