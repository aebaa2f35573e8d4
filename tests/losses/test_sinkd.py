"""SinKD's loss: an independent oracle, the method's identities, linear assignment as its limit, extreme inputs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.kernels.plans import NewtonSparse
from alignkit.losses import SelfCosts, sinkd_loss, transport_loss


def logits(rows: int = 6, vocabulary: int = 5, seed: int = 0, width: float = 4.0) -> tuple[Tensor, Tensor]:
    """Student (a leaf) and teacher, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * width for _ in range(2)
    )
    return student.requires_grad_(), teacher


def softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp((x - max(row)) / temperature) for x in row]
    return [w / math.fsum(weights) for w in weights]


def oracle_costs(left: Tensor, right: Tensor, temperature: float = 2.0) -> list[list[float]]:
    """L1 between softmax rows, in Python's floats."""
    q = [softmax(row, temperature) for row in left.tolist()]
    p = [softmax(row, temperature) for row in right.tolist()]
    return [[math.fsum(abs(x - y) for x, y in zip(a, b, strict=True)) for b in p] for a in q]


def oracle(
    costs: list[list[float]], epsilon: float = 0.1, iterations: int = 20
) -> tuple[float, list[list[float]]]:
    """The iterations as the paper writes them: the kernel itself is scaled, rows and then columns."""
    n = len(costs)
    plan = [[math.exp(-d / epsilon) for d in row] for row in costs]
    for _ in range(iterations):
        plan = [[x / math.fsum(row) for x in row] for row in plan]
        sums = [math.fsum(row[j] for row in plan) for j in range(n)]
        plan = [[row[j] / sums[j] for j in range(n)] for row in plan]
    return math.fsum(plan[i][j] * costs[i][j] for i in range(n) for j in range(n)), plan


def assignment(costs: list[list[float]]) -> tuple[float, tuple[int, ...]]:
    """Linear assignment by trying every permutation: its cost and the column of each row."""
    n = len(costs)
    return min(
        (math.fsum(costs[i][to] for i, to in enumerate(columns)), columns)
        for columns in itertools.permutations(range(n))
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("temperature", "epsilon", "iterations"), [(2.0, 0.1, 20), (1.0, 0.5, 1), (3.0, 0.05, 7)]
)
def test_matches_the_method(temperature: float, epsilon: float, iterations: int, reduction: str) -> None:
    student, teacher = logits()
    result = sinkd_loss(
        student, teacher, temperature=temperature, epsilon=epsilon, iterations=iterations, reduction=reduction
    )
    cost, plan = oracle(oracle_costs(student, teacher, temperature), epsilon, iterations)
    expected = torch.tensor(plan, dtype=torch.float64)
    assert result.loss.item() == pytest.approx(cost / (6 if reduction == "mean" else 1))
    torch.testing.assert_close(result.plan, expected)
    torch.testing.assert_close(result.residual, (expected.sum(1) - 1).abs().max())


def test_debiased_subtracts_half_of_each_self_term() -> None:
    student, teacher = logits()
    biased, own, teachers = (
        oracle(oracle_costs(left, right))[0]
        for left, right in ((student, teacher), (student, student), (teacher, teacher))
    )
    result = sinkd_loss(student, teacher, debiased=True)
    assert result.loss.item() == pytest.approx(biased - (own + teachers) / 2)
    torch.testing.assert_close(result.plan, sinkd_loss(student, teacher).plan)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("debiased", [False, True])
def test_gradcheck_through_the_iterations(debiased: bool, reduction: str) -> None:
    student, teacher = logits(rows=3, vocabulary=4, width=1.0)
    assert torch.autograd.gradcheck(
        lambda s: sinkd_loss(s, teacher, iterations=5, debiased=debiased, reduction=reduction).loss, [student]
    )


def test_the_envelope_gradient_is_that_of_the_regularised_cost_at_its_optimum() -> None:
    student, teacher = logits(width=1.5)
    envelope = sinkd_loss(student, teacher, epsilon=0.3, iterations=400, gradient="envelope")
    (ours,) = torch.autograd.grad(envelope.loss, student)

    q, p = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
    costs = (q[:, None] - p[None]).abs().sum(-1)
    log_plan = -costs / 0.3
    for _ in range(400):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
    regularised = (log_plan.exp() * (costs + 0.3 * log_plan)).sum()
    (exact,) = torch.autograd.grad(regularised, student, retain_graph=True)
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-9)

    (held,) = torch.autograd.grad((log_plan.exp().detach() * costs).sum(), student, retain_graph=True)
    torch.testing.assert_close(ours, held, rtol=1e-6, atol=1e-9)
    unrolled = sinkd_loss(student, teacher, epsilon=0.3, iterations=400)
    torch.testing.assert_close(envelope.loss, unrolled.loss)
    assert (torch.autograd.grad(unrolled.loss, student)[0] - ours).norm() > 1e-3 * ours.norm()


def test_one_row_is_twice_the_total_variation() -> None:
    student, teacher = logits(rows=1)
    distance = ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).abs().sum()
    torch.testing.assert_close(sinkd_loss(student, teacher).loss, distance)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_it_falls_to_linear_assignment_with_epsilon(seed: int, rows: int) -> None:
    """Within epsilon n ln n (the entropy a plan can have), up to what the rows' marginals are still off."""
    student, teacher = logits(rows=rows, seed=seed)
    costs = oracle_costs(student, teacher)
    best, columns = assignment(costs)
    for epsilon in (0.3, 0.1, 0.02, 0.005):
        result = sinkd_loss(student.detach(), teacher, epsilon=epsilon, iterations=1000)
        error = 2 * (result.plan.sum(dim=1) - 1).abs().sum().item() + 1e-9  # no cost is above 2
        slack = epsilon * rows * math.log(rows) + error
        assert best - error <= result.loss.item() <= best + slack
    others = set(itertools.permutations(range(rows))) - {columns}
    second = min(math.fsum(costs[i][to] for i, to in enumerate(other)) for other in others)
    if second > best + 4 * slack:  # the best assignment stands out: the plan is it
        assert result.plan.argmax(dim=1).tolist() == list(columns)


def test_linear_assignment_within_a_thousandth_at_a_small_epsilon() -> None:
    student, teacher = logits(rows=6)
    best, columns = assignment(oracle_costs(student, teacher))
    result = sinkd_loss(student, teacher, epsilon=0.005, iterations=2000)
    assert result.loss.item() == pytest.approx(best, abs=1e-3)
    assert result.plan.argmax(dim=1).tolist() == list(columns)


def test_a_large_epsilon_is_the_mean_cost_of_every_match() -> None:
    student, teacher = logits()
    mean = math.fsum(map(math.fsum, oracle_costs(student, teacher))) / 6
    assert sinkd_loss(student, teacher, epsilon=1e6).loss.item() == pytest.approx(mean)


def test_a_high_temperature_costs_nothing() -> None:
    assert sinkd_loss(*logits(), temperature=1e9).loss.item() == pytest.approx(0, abs=1e-7)


def test_columns_sum_to_one_and_the_residual_shrinks() -> None:
    student, teacher = logits(rows=16, vocabulary=50)
    few, many = (sinkd_loss(student, teacher, iterations=count) for count in (5, 200))
    for result in (few, many):
        torch.testing.assert_close(result.plan.sum(dim=0), torch.ones(16, dtype=torch.float64))
    assert many.residual < few.residual


def test_doubling_the_batch_doubles_the_sum_and_keeps_the_mean() -> None:
    student, teacher = logits()
    once, twice = (
        [sinkd_loss(student.repeat(k, 1), teacher.repeat(k, 1), reduction=r).loss for r in ("sum", "mean")]
        for k in (1, 2)
    )
    torch.testing.assert_close(twice[0], 2 * once[0])
    torch.testing.assert_close(twice[1], once[1])


def test_two_classes_are_matched_in_order() -> None:
    student, teacher = logits(vocabulary=2)
    result = sinkd_loss(student, teacher, epsilon=0.002, iterations=4000)
    q, p = ((x / 2).softmax(-1)[:, 0].sort().values for x in (student, teacher))
    torch.testing.assert_close(result.loss, 2 * (q - p).abs().sum(), atol=5e-3, rtol=0)


def test_the_order_of_the_students_rows_does_not_matter() -> None:
    student, teacher = logits()
    order = [3, 0, 5, 1, 4, 2]
    plain, permuted = sinkd_loss(student, teacher), sinkd_loss(student[order], teacher)
    torch.testing.assert_close(permuted.loss, plain.loss)
    torch.testing.assert_close(permuted.plan, plain.plan[order])


def test_debiasing_makes_equal_sets_a_zero_without_pull() -> None:
    _, teacher = logits(rows=16, width=1.0)
    student = teacher.clone().requires_grad_()
    biased, debiased = (sinkd_loss(student, teacher, iterations=300, debiased=d) for d in (False, True))
    (pull,), (none,) = (torch.autograd.grad(result.loss, student) for result in (biased, debiased))
    assert biased.loss.item() > 0.1
    assert debiased.loss.item() == pytest.approx(0, abs=1e-12)
    assert pull.norm() > 1e-2
    assert none.norm() < 1e-4 * pull.norm()


def test_a_student_far_from_its_teacher_is_drawn_onto_it() -> None:
    _, teacher = logits(rows=4, vocabulary=8)
    student = teacher.roll(1, dims=1).mul(3).requires_grad_()
    start = sinkd_loss(student, teacher).loss.item()
    optimiser = torch.optim.Adam([student], lr=0.2)
    for _ in range(200):
        optimiser.zero_grad()
        sinkd_loss(student, teacher).loss.backward()
        optimiser.step()
    assert start > 2
    assert sinkd_loss(student, teacher).loss.item() < 0.2


def test_only_the_student_gets_a_gradient_and_what_is_logged_none() -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    result = sinkd_loss(student, teacher, debiased=True)
    result.loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert not result.plan.requires_grad
    assert not result.residual.requires_grad


@pytest.mark.parametrize("debiased", [False, True])
def test_costs_computed_elsewhere_give_the_same(debiased: bool) -> None:
    student, teacher = logits()
    pairs = (student, teacher), (student, student), (teacher, teacher)
    costs = [torch.tensor(oracle_costs(left, right), dtype=torch.float64) for left, right in pairs]
    own = SelfCosts(costs[1], costs[2]) if debiased else None
    ours = transport_loss(costs[0], own, reduction="mean")
    torch.testing.assert_close(
        ours.loss, sinkd_loss(student, teacher, debiased=debiased, reduction="mean").loss
    )


def test_padding_that_both_sides_mask_changes_nothing() -> None:
    student, teacher = logits()
    padding = torch.full((6, 3), -math.inf, dtype=torch.float64)
    padded = torch.cat([student.detach(), padding], 1).requires_grad_()
    plain, masked = sinkd_loss(student, teacher), sinkd_loss(padded, torch.cat([teacher, padding], 1))
    torch.testing.assert_close(masked.loss, plain.loss)
    (expected,) = torch.autograd.grad(plain.loss, student)
    (found,) = torch.autograd.grad(masked.loss, padded)
    torch.testing.assert_close(found, torch.cat([expected, torch.zeros_like(padding)], 1))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.lists(st.floats(-1e4, 1e4, width=16, allow_nan=False), min_size=12, max_size=12),
    st.sampled_from([1e-3, 0.1, 10.0]),
    st.booleans(),
    st.sampled_from(["unrolled", "envelope"]),
)
def test_no_finite_input_gives_a_nan(
    dtype: torch.dtype, values: list[float], epsilon: float, debiased: bool, gradient: str
) -> None:
    student, teacher = torch.tensor(values, dtype=dtype).view(2, 2, 3)
    student.requires_grad_()
    result = sinkd_loss(student, teacher, epsilon=epsilon, debiased=debiased, gradient=gradient)
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert student.grad is not None
    for tensor in (result.loss, result.plan, result.residual, student.grad):
        assert torch.isfinite(tensor).all()
    torch.testing.assert_close(result.plan.sum(dim=0), torch.ones(2), rtol=0, atol=1e-3)
    if not debiased:
        assert -1e-6 <= result.loss.item() <= 4.01


def test_pairing_at_a_small_epsilon_is_each_pairs_own_distance() -> None:
    student, teacher = logits()
    own = ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).abs().sum()
    solver = NewtonSparse(0.002)
    paired = sinkd_loss(student, teacher, solver=solver, pairing_weight=1.0)
    torch.testing.assert_close(paired.loss, own, rtol=0, atol=1e-2)
    free = sinkd_loss(student, teacher, solver=solver)
    torch.testing.assert_close(paired.cost, free.loss)
    torch.testing.assert_close(paired.loss, free.loss + paired.gap)
    assert free.gap == 0
    assert free.steps > 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_pairing_weight_of_zero_changes_no_bit(reduction: str) -> None:
    student, teacher = logits()
    plain, weighted = (
        sinkd_loss(student, teacher, reduction=reduction, **more) for more in ({}, {"pairing_weight": 0.0})
    )
    assert torch.equal(plain.loss, weighted.loss)
    assert torch.equal(plain.loss, plain.cost)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("debiased", [False, True])
def test_no_row_is_a_differentiable_zero(debiased: bool, reduction: str) -> None:
    student = torch.zeros(0, 7, requires_grad=True)
    result = sinkd_loss(student, torch.zeros(0, 7), debiased=debiased, reduction=reduction)
    result.loss.backward()
    assert result.loss.item() == 0
    assert student.grad is not None
    assert result.plan.shape == (0, 0)
    assert result.residual.item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0, found 0.0"),
        ({"epsilon": -0.1}, "epsilon must be a finite number > 0, found -0.1"),
        ({"iterations": 0}, "iterations must be >= 1, found 0"),
        ({"reduction": "total"}, "reduction must be one of sum, mean, found 'total'"),
        ({"gradient": "exact"}, "gradient must be one of unrolled, envelope, implicit, found 'exact'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkd_loss(*logits(), **options)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 7), (4, 8), "must share one vocabulary, found 7 and 8 columns"),
        ((4, 7), (3, 7), "must have the same rows, found 4 and 3"),
        ((4, 7), (1, 4, 7), r"teacher_logits must be \[rows, vocabulary\], found shape \[1, 4, 7\]"),
    ],
)
def test_shapes_that_differ_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sinkd_loss(torch.zeros(student), torch.zeros(teacher))


def test_costs_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cost must be \[n, n\], found shape \[3, 4\]"):
        transport_loss(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"the teacher's self-cost must have shape \[3, 3\], found \[4, 4\]"):
        transport_loss(torch.zeros(3, 3), SelfCosts(torch.zeros(3, 3), torch.zeros(4, 4)))
