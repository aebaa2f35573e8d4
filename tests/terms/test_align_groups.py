"""The groups' gradients and curvatures against derivatives taken by autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.terms import RowView
from alignkit.terms.align_groups import AlignGroups, head_moments
from tests.terms.views import view

MARGINS = torch.tensor([0.3, -1.2, 2.0, 0.1, -0.4, 1.1], dtype=torch.float64)
GROUPS = [0, 1, 0, 1, 1, 2]


def with_margins(margins: Tensor, groups: list[int]) -> RowView:
    return view(torch.zeros_like(margins), groups=groups, chosen=margins, rejected=torch.zeros_like(margins))


def extras(term: AlignGroups, margins: Tensor, groups: list[int] = GROUPS) -> Tensor:
    found = term.apply(with_margins(margins, groups), {}).extra
    return torch.zeros_like(margins) if found is None else found


def derivatives(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [2] and Hessian [2, 2] of a group's mean loss softplus(-(a m + b)) at (1, 0)."""

    def loss(head: Tensor) -> Tensor:
        return F.softplus(-(head[0] * margins + head[1])).mean()

    at = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return torch.func.grad(loss)(at), torch.func.hessian(loss)(at)


def test_moments_are_the_derivatives_of_the_head() -> None:
    gradients, hessians = head_moments(MARGINS)
    expected = derivatives(MARGINS)
    torch.testing.assert_close(gradients.mean(0), expected[0])
    torch.testing.assert_close(hessians.mean(0), expected[1])


@pytest.mark.parametrize("curvature", ["hessian_gradient", "hessian"])
def test_the_mean_over_rows_is_the_penalty_over_groups(curvature: str) -> None:
    term = AlignGroups(hessian_weight=3.0, gradient_weight=2.0, curvature=curvature)
    found = [derivatives(MARGINS[torch.tensor(GROUPS) == group]) for group in range(3)]
    g = torch.stack([gradient for gradient, _ in found])
    x = torch.stack([h @ d if curvature == "hessian_gradient" else h.flatten() for d, h in found])
    expected = 3 * (x - x.mean(0)).square().sum(1).mean() + 2 * (g - g.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(extras(term, MARGINS).mean(), expected)


def test_the_gradient_holds_the_mean_over_groups_fixed() -> None:
    term, margins = AlignGroups(hessian_weight=0.0, gradient_weight=1.0), MARGINS.clone().requires_grad_()
    (found,) = torch.autograd.grad(extras(term, margins).mean(), margins)
    fixed = torch.stack([derivatives(MARGINS[torch.tensor(GROUPS) == one])[0] for one in range(3)]).mean(0)

    def penalty(m: Tensor) -> Tensor:
        parts = [-(torch.sigmoid(-m) * torch.stack([m, torch.ones_like(m)]))]
        own = [parts[0][:, torch.tensor(GROUPS) == one].mean(1) for one in range(3)]
        return torch.stack([(one - fixed).square().sum() for one in own]).mean()

    torch.testing.assert_close(found, torch.func.grad(penalty)(MARGINS))


def test_equal_groups_equal_margins_and_a_single_group_give_nothing() -> None:
    assert extras(AlignGroups(), MARGINS, [0] * 6).tolist() == [0.0] * 6
    assert extras(AlignGroups(), torch.full((6,), 0.7).double()).abs().max() < 1e-12
    twice = torch.cat([MARGINS, MARGINS])
    assert extras(AlignGroups(), twice, [0] * 6 + [1] * 6).abs().max() < 1e-12


def test_the_names_of_the_groups_do_not_matter() -> None:
    renamed = [{0: 2, 1: 0, 2: 1}[group] for group in GROUPS]
    torch.testing.assert_close(extras(AlignGroups(), MARGINS, renamed), extras(AlignGroups(), MARGINS))
