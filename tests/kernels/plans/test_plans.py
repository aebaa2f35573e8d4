"""Transport plans: against many plain sweeps, every assignment, central differences, and their own optimality."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.kernels.plans import KSparse, NewtonSparse, Sinkhorn, Solver
from alignkit.kernels.plans.newton_sparse import potential


def costs(rows: int, seed: int = 0) -> Tensor:
    """L1 distances between softmax rows, float64, between 0 and 2."""
    generator = torch.Generator().manual_seed(seed)
    q, p = (
        torch.randn(rows, 7, generator=generator, dtype=torch.float64).mul(2).softmax(-1) for _ in range(2)
    )
    return torch.cdist(q, p, p=1)


def swept(cost: Tensor, epsilon: float, sweeps: int) -> Tensor:
    """The entropic plan by scaling the kernel itself, as it is usually written."""
    kernel = torch.exp(-cost / epsilon)
    u = v = torch.ones(len(cost), dtype=cost.dtype)
    for _ in range(sweeps):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    return u[:, None] * kernel * v


def assignment(cost: Tensor) -> float:
    """The cost of the best permutation, by trying all."""
    rows = range(len(cost))
    return min(sum(float(cost[i, to[i]]) for i in rows) for to in itertools.permutations(rows))


def is_plan(plan: Tensor, tolerance: float) -> bool:
    return bool((plan >= 0).all()) and all(
        float((plan.sum(dim) - 1).abs().max()) <= tolerance for dim in (-1, -2)
    )


def test_newton_gives_the_plan_of_many_thousand_sweeps() -> None:
    cost = costs(12)
    found = NewtonSparse(0.1)(cost)
    torch.testing.assert_close(found.plan, swept(cost, 0.1, 20_000), rtol=0, atol=1e-8)
    assert found.residual <= 1e-8
    assert 0 < found.steps < 40


@pytest.mark.parametrize("density", [2, 15])
def test_every_newton_step_raises_the_dual(density: int) -> None:
    cost = costs(24)
    states = [*NewtonSparse(0.02, density=density).trajectory(cost)]
    for before, after in itertools.pairwise(states):
        if before.epsilon == after.epsilon:
            scores = -cost / after.epsilon
            rise = potential(scores, after.f, after.g) - potential(scores, before.f, before.g)
            assert rise > -1e-9
    assert len(states) > 4


def test_newton_at_a_small_epsilon_is_linear_assignment() -> None:
    cost = costs(7)
    found = NewtonSparse(0.003)(cost)
    assert float(found.cost) == pytest.approx(assignment(cost), abs=1e-3)
    assert is_plan(found.plan, 1e-6)


@pytest.mark.parametrize(
    "cost",
    [torch.zeros(5, 5), torch.full((5, 5), 2.0), costs(6)[[0, 0, 1, 1, 2, 2]].float(), torch.tensor([[1.5]])],
    ids=["equal", "farthest", "duplicates", "one_row"],
)
@pytest.mark.parametrize("solver", [NewtonSparse(0.003), NewtonSparse(0.1), KSparse(k=5)], ids=repr)
def test_degenerate_costs_give_a_plan(solver: Solver, cost: Tensor) -> None:
    cost = cost.clone().requires_grad_()
    found = solver(cost)
    found.cost.backward()
    assert is_plan(found.plan, 1e-5)
    assert cost.grad is not None
    assert torch.isfinite(cost.grad).all()


@pytest.mark.parametrize("solver", [Sinkhorn(gradient="implicit"), NewtonSparse(), KSparse()], ids=repr)
def test_no_row_is_a_differentiable_zero(solver: Solver) -> None:
    cost = torch.zeros(0, 0, requires_grad=True)
    found = solver(cost)
    found.cost.backward()
    assert found.cost.item() == 0
    assert found.plan.shape == (0, 0)


@pytest.mark.parametrize("epsilon", [0.3, 0.05])
def test_the_implicit_gradient_is_that_of_central_differences(epsilon: float) -> None:
    cost = costs(5).requires_grad_()
    solver = NewtonSparse(epsilon, tolerance=1e-12)
    solver(cost).cost.backward()
    with torch.no_grad():
        expected = torch.zeros_like(cost)
        for place in itertools.product(range(5), range(5)):
            step = torch.zeros_like(cost)
            step[place] = 1e-5
            expected[place] = (solver(cost + step).cost - solver(cost - step).cost) / 2e-5
    assert cost.grad is not None
    torch.testing.assert_close(cost.grad, expected, rtol=1e-5, atol=1e-7)


def test_the_implicit_gradient_of_converged_sweeps_is_the_unrolled_one() -> None:
    unrolled, implicit = (
        torch.autograd.grad(Sinkhorn(0.3, 300, gradient)(cost).cost, cost)[0]
        for gradient in ("unrolled", "implicit")
        for cost in [costs(6).requires_grad_()]
    )
    torch.testing.assert_close(implicit, unrolled, rtol=1e-6, atol=1e-9)


def test_the_envelope_gradient_is_the_plan() -> None:
    for solver in (NewtonSparse(gradient="envelope"), KSparse()):
        cost = costs(6).requires_grad_()
        found = solver(cost)
        torch.testing.assert_close(torch.autograd.grad(found.cost, cost)[0], found.plan)


def test_leading_dimensions_are_independent_problems() -> None:
    both = torch.stack([costs(6, 0), costs(6, 1)])[:, None]
    for solver in (NewtonSparse(0.05), KSparse()):
        together = solver(both)
        for problem in range(2):
            torch.testing.assert_close(together.plan[problem, 0], solver(both[problem, 0]).plan)
        assert together.cost.shape == (2, 1)


def test_one_entry_a_column_is_linear_assignment() -> None:
    cost = costs(6)
    solver = KSparse(k=1, gamma=0.1)
    found = solver(cost)
    assert is_plan(found.plan, 1e-6)
    value = float(found.cost + solver.regularisation(found.plan))
    assert value == pytest.approx(assignment(cost) + 6 * 0.1 / 2, abs=1e-6)


def test_all_entries_a_column_is_quadratic_transport_at_its_optimum() -> None:
    """Optimal for all T: D + gamma T = alpha + beta where T > 0, and at least that elsewhere."""
    cost, gamma = costs(8), 0.3
    plan = KSparse(k=8, gamma=gamma)(cost).plan
    assert is_plan(plan, 1e-7)
    slope = cost + gamma * plan
    # potentials from the support by least squares
    used = plan > 1e-9
    rows, columns = used.nonzero(as_tuple=True)
    design = torch.zeros(len(rows), 16, dtype=cost.dtype)
    design[torch.arange(len(rows)), rows] = 1
    design[torch.arange(len(rows)), 8 + columns] = 1
    potentials = torch.linalg.lstsq(design, slope[used][:, None], driver="gelsd").solution[:, 0]
    bound = potentials[:8, None] + potentials[None, 8:]
    torch.testing.assert_close(slope[used], bound[used], rtol=0, atol=1e-6)
    assert bool((slope - bound > -1e-6).all())


def test_more_entries_never_cost_more() -> None:
    cost = costs(20)
    values = [
        float(found.cost + solver.regularisation(found.plan))
        for solver in (KSparse(k=k) for k in (4, 6, 20))
        for found in [solver(cost)]
    ]
    assert values[0] >= values[1] - 1e-6 >= values[2] - 2e-6


def test_a_column_has_at_most_k_entries() -> None:
    plan = KSparse(k=4)(costs(20)).plan
    assert int((plan > 0).sum(dim=0).max()) <= 4
    torch.testing.assert_close(plan.sum(dim=0), torch.ones(20, dtype=plan.dtype))


def test_rows_that_are_off_are_reported() -> None:
    tied = torch.ones(6, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="k_sparse: the rows of a plan do not sum to one"):
        found = KSparse(k=1)(tied)
    assert found.residual > 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([0.5, 0.1, 0.01]))
def test_the_gap_is_never_negative(seed: int, rows: int, epsilon: float) -> None:
    cost, solver = costs(rows, seed), NewtonSparse(epsilon)
    assert float(solver.gap(cost, solver(cost).plan)) >= -1e-7


def test_the_gap_is_zero_where_the_identity_is_optimal() -> None:
    cost = costs(5) + 4 * (1 - torch.eye(5, dtype=torch.float64))
    for solver in (NewtonSparse(0.05), KSparse(k=2)):
        assert float(solver.gap(cost, solver(cost).plan)) == pytest.approx(0, abs=1e-6)


def test_only_permuting_one_side_changes_the_gap() -> None:
    cost, solver, order = costs(6), NewtonSparse(0.1), [3, 0, 5, 1, 4, 2]

    def gap(of: Tensor) -> float:
        return float(solver.gap(of, solver(of).plan))

    assert gap(cost[order][:, order]) == pytest.approx(gap(cost), abs=1e-7)
    assert abs(gap(cost[order]) - gap(cost)) > 1e-3


def test_the_gradient_of_the_gap_is_the_identity_minus_the_plan() -> None:
    cost, solver = costs(5).requires_grad_(), NewtonSparse(0.1)
    plan = solver(cost).plan
    (found,) = torch.autograd.grad(solver.gap(cost, plan), cost)
    torch.testing.assert_close(found, torch.eye(5, dtype=plan.dtype) - plan)


def test_costs_of_float32_are_solved_as_exactly() -> None:
    found = NewtonSparse(0.01)(costs(16).float())
    assert found.plan.dtype == torch.float32
    assert is_plan(found.plan.double(), 1e-5)
    assert math.isfinite(float(found.cost))


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        (Sinkhorn, {"epsilon": 0.0}, "epsilon must be a finite number > 0, found 0.0"),
        (Sinkhorn, {"iterations": 0}, "iterations must be >= 1, found 0"),
        (NewtonSparse, {"density": 0}, "density must be >= 1, found 0"),
        (
            NewtonSparse,
            {"gradient": "unrolled"},
            "gradient must be one of envelope, implicit, found 'unrolled'",
        ),
        (KSparse, {"k": 0}, "k must be >= 1, found 0"),
        (KSparse, {"gamma": -1.0}, "gamma must be a finite number > 0, found -1.0"),
    ],
)
def test_options_out_of_range_are_refused(
    solver: type[Solver], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solver(**options)


@pytest.mark.parametrize("solver", [Sinkhorn(), NewtonSparse(), KSparse()], ids=repr)
def test_costs_that_are_not_square_are_refused(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"cost must be \[..., n, n\], found shape \[3, 4\]"):
        solver(torch.zeros(3, 4))
