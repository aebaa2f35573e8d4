"""Early learning against the authors' equations, run by hand."""

import math

import pytest
import torch
from pydantic import ValidationError

from alignkit.terms import RowView
from alignkit.terms.early_learning import EarlyLearning
from tests.terms.views import setup, step, view


def with_margins(margins: torch.Tensor) -> RowView:
    return view(torch.zeros_like(margins), chosen=margins, rejected=torch.zeros_like(margins))


def test_beliefs_are_a_moving_average_over_visits_in_any_order() -> None:
    term = EarlyLearning(memory=0.7)
    state, beliefs = term.begin(setup(rows=6)), [[0.0, 0.0] for _ in range(6)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        margins = torch.randn(6, generator=generator)
        for part in torch.randperm(6, generator=generator).split(2):
            seen = with_margins(margins[part])
            rows = RowView(seen.losses, part, seen.groups, seen.margins, seen.chosen, seen.rejected)
            state, _ = step(term, state, rows)
            for row in part.tolist():
                p = 1 / (1 + math.exp(-float(margins[row])))
                beliefs[row] = [
                    0.7 * old + 0.3 * new for old, new in zip(beliefs[row], (p, 1 - p), strict=True)
                ]
    torch.testing.assert_close(state["beliefs"], torch.tensor(beliefs), atol=1e-6, rtol=1e-5)
    assert state["visits"].tolist() == [3] * 6


def test_the_slope_is_that_of_the_formula() -> None:
    term = EarlyLearning(weight=3.0, memory=0.7)
    state = term.begin(setup(rows=3))
    state["beliefs"] = torch.tensor([[0.1, 0.9], [0.95, 0.05], [0.2, 0.3]])
    margins = torch.tensor([-2.0, 1.5, 0.4], requires_grad=True)
    extra = term.apply(with_margins(margins), state).extra
    (slope,) = torch.autograd.grad(extra.sum(), margins)
    for row, m in enumerate(margins.tolist()):
        p = 1 / (1 + math.exp(-m))
        t = [
            0.7 * float(state["beliefs"][row, 0]) + 0.3 * p,
            0.7 * float(state["beliefs"][row, 1]) + 0.3 * (1 - p),
        ]
        agreement = t[0] * p + t[1] * (1 - p)
        assert float(extra[row]) == pytest.approx(3 * math.log(1 - agreement), rel=1e-5)
        assert float(slope[row]) == pytest.approx(
            -3 * (t[0] - t[1]) * p * (1 - p) / (1 - agreement), rel=1e-4
        )


def test_a_pair_believed_the_other_way_is_pushed_against_its_label() -> None:
    term, state = EarlyLearning(), EarlyLearning().begin(setup(rows=1))
    state["beliefs"] = torch.tensor([[0.1, 0.9]])
    margin = torch.tensor([-2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(term.apply(with_margins(margin), state).extra.sum(), margin)
    assert float(slope) > 0.88  # more than the slope sigma(2) of the pair's own loss, whose sign is the other


def test_a_tied_belief_gives_ln_a_half_and_no_slope() -> None:
    term = EarlyLearning(weight=2.0)
    state = term.begin(setup(rows=1)) | {"beliefs": torch.tensor([[0.5, 0.5]])}
    margin = torch.zeros(1, requires_grad=True)
    extra = term.apply(with_margins(margin), state).extra
    assert float(extra) == pytest.approx(2 * math.log(0.5))
    assert float(torch.autograd.grad(extra.sum(), margin)[0]) == pytest.approx(0.0, abs=1e-7)


def test_a_corrected_belief_is_the_mean_of_equal_visits() -> None:
    term = EarlyLearning(weight=1.0, corrected=True)
    state = term.begin(setup(rows=1))
    p = 1 / (1 + math.exp(-1.2))
    expected = math.log(1 - (p * p + (1 - p) ** 2))
    for _ in range(3):
        rows = with_margins(torch.tensor([1.2]))
        assert float(term.apply(rows, state).extra) == pytest.approx(expected, rel=1e-5)
        state, _ = step(term, state, rows)


def test_a_correction_with_a_large_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match="freezes the first impression"):
        EarlyLearning(corrected=True)
