"""sinkhorn against a float64 matrix scaled as the method writes it: plans, gradients, limits, extreme costs."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignkit.kernels import sinkhorn
from alignkit.kernels.backend import interpreted
from tests.kernels.aot import TARGETS, compile_for, require_fit
from tests.kernels.interpreted import grid

needs_triton = pytest.mark.skipif(
    not (torch.cuda.is_available() or interpreted()), reason="needs a GPU, or TRITON_INTERPRET=1"
)
implementations = pytest.mark.parametrize(
    "implementation", ["reference", "torch", pytest.param("triton", marks=needs_triton)]
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def costs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random costs between 0 and 2, as those of L1, that require grad."""
    generator = torch.Generator().manual_seed(seed)
    return (
        (2 * torch.rand(*shape, generator=generator, dtype=torch.float64)).to(DEVICE, dtype).requires_grad_()
    )


def oracle(cost: Tensor, epsilon: float, iterations: int) -> tuple[Tensor, Tensor]:
    """The plan and its cost; not in the log domain."""
    plan = torch.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(dim=-1, keepdim=True)
        plan = plan / plan.sum(dim=-2, keepdim=True)
    return plan, (plan * cost).sum(dim=(-2, -1))


def pull(plan: Tensor, total: Tensor, cost: Tensor) -> Tensor:
    """The gradient of a function that depends on every entry of the plan and on its cost."""
    weights = torch.linspace(-1, 1, plan.numel(), dtype=torch.float64).view(plan.shape).to(plan)
    return torch.autograd.grad((plan * weights).sum() + total.sum(), cost)[0]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.cpu()).abs().max() / expected.abs().max())


@implementations
@pytest.mark.parametrize(
    ("shape", "solver", "dtype"),
    grid(
        [(1, 1), (9, 9), (2, 2, 5, 5)],
        [(0.1, 20), (0.5, 1), (0.05, 12)],
        [torch.float32, torch.float64],
        representative=("020", "100", "121", "210", "211"),
    ),
)
def test_values_and_gradients(
    implementation: str, shape: tuple[int, ...], solver: tuple[float, int], dtype: torch.dtype
) -> None:
    (epsilon, iterations), tolerance = solver, 1e-5 if dtype == torch.float32 else 1e-11
    cost = costs(*shape, dtype=dtype)
    exact = cost.detach().double().requires_grad_()
    found = sinkhorn(cost, epsilon=epsilon, iterations=iterations, implementation=implementation)
    plan, total = oracle(exact, epsilon, iterations)
    assert found.plan.dtype == dtype
    assert relative(found.plan.detach(), plan.detach()) < tolerance
    assert relative(found.cost.detach(), total.detach()) < tolerance
    residual = (plan.sum(dim=-1) - 1).abs().amax(dim=-1)
    torch.testing.assert_close(found.residual.double(), residual.detach(), atol=tolerance, rtol=0)
    gradient = pull(found.plan, found.cost, cost)
    assert gradient.dtype == dtype
    # an error of the scores is e^error of the plan, and each iteration passes it on
    assert relative(gradient, pull(plan, total, exact)) < 4 * tolerance / min(epsilon, 0.25)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(0, 10_000),
    st.floats(0.05, 10),
    st.integers(1, 60),
)
def test_a_gradient_is_exact_through_all_iterations(
    size: int, problems: int, seed: int, epsilon: float, iterations: int
) -> None:
    cost = costs(problems, size, size, seed=seed)
    found = sinkhorn(cost, epsilon=epsilon, iterations=iterations)
    plan, total = oracle(cost, epsilon, iterations)
    torch.testing.assert_close(found.plan, plan, rtol=1e-8, atol=1e-12)
    expected = pull(plan, total, cost)
    torch.testing.assert_close(pull(found.plan, found.cost, cost), expected, rtol=1e-6, atol=1e-9)


@implementations
def test_the_envelope_takes_the_plan_as_a_constant(implementation: str) -> None:
    cost = costs(2, 6, 6)
    found = sinkhorn(cost, epsilon=0.1, iterations=20, gradient="envelope", implementation=implementation)
    assert not found.plan.requires_grad
    assert not found.residual.requires_grad
    torch.testing.assert_close(torch.autograd.grad(found.cost.sum(), cost)[0], found.plan)
    torch.testing.assert_close(found.plan, sinkhorn(cost, epsilon=0.1, iterations=20).plan.detach())


@pytest.mark.parametrize("reach", [0.0, 1.0])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.005, 40), (0.05, 12), (1.0, 2)])
def test_how_often_the_kernel_is_made_again_changes_nothing(
    epsilon: float, iterations: int, reach: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit.kernels.sinkhorn import torch as engine

    cost = costs(2, 7, 7, dtype=torch.float32)

    def solved() -> tuple[Tensor, Tensor]:
        found = sinkhorn(cost, epsilon=epsilon, iterations=iterations, implementation="torch")
        return found.plan.detach(), pull(found.plan, found.cost, cost)

    expected = solved()
    monkeypatch.setattr(engine, "REACH", reach)
    for one, other in zip(solved(), expected, strict=True):
        assert relative(one, other.cpu().double()) < 1e-5 / min(epsilon, 0.25)


def test_problems_of_a_batch_do_not_touch_each_other() -> None:
    cost = costs(4, 6, 6)
    together = sinkhorn(cost, epsilon=0.1, iterations=15)
    alone = [sinkhorn(one, epsilon=0.1, iterations=15) for one in cost]
    for name in ("plan", "residual", "cost"):
        torch.testing.assert_close(getattr(together, name), torch.stack([getattr(x, name) for x in alone]))


def test_memory_for_the_gradient_hardly_grows_with_the_iterations() -> None:
    def saved(iterations: int) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = sinkhorn(costs(64, 64), epsilon=0.1, iterations=iterations)
        assert result.cost.requires_grad
        return sum(kept.values())

    matrix, vector = 8 * 64 * 64, 8 * 64
    assert saved(101) - saved(1) == 2 * 100 * vector
    assert saved(1) <= 2 * matrix + 3 * vector


@pytest.mark.parametrize("seed", range(3))
def test_it_falls_to_linear_assignment_with_epsilon(seed: int) -> None:
    """Within epsilon n ln n, the entropy that a plan can have, up to what the rows' sums are still off."""
    cost = costs(9, 9, seed=seed).detach()
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    best = float(cost[rows, columns].sum())
    gaps = []
    for epsilon in (0.3, 0.1, 0.03, 0.01, 0.003):
        found = sinkhorn(cost, epsilon=epsilon, iterations=math.ceil(6 / epsilon))
        slack = 2 * 9 * float(found.residual)
        assert best - slack <= float(found.cost) <= best + epsilon * 9 * math.log(9) + slack
        gaps.append(float(found.cost) - best)
    assert gaps[-1] < 0.02 * gaps[0]
    assert found.plan.argmax(dim=1).tolist() == columns.tolist()


def test_a_large_epsilon_is_the_mean_cost_of_every_match() -> None:
    cost = costs(6, 6)
    torch.testing.assert_close(sinkhorn(cost, epsilon=1e7, iterations=3).cost, cost.sum() / 6)


def test_adding_to_a_row_or_a_column_changes_no_plan() -> None:
    cost = costs(6, 6).detach()
    plain = sinkhorn(cost, epsilon=0.3, iterations=500)
    moved = sinkhorn(cost + torch.arange(6)[:, None] - torch.arange(6)[None] / 2, epsilon=0.3, iterations=500)
    torch.testing.assert_close(moved.plan, plain.plan)


def adversarial(kind: str, size: int = 6) -> Tensor:
    eye = torch.eye(size)
    return {
        "equal": torch.full((size, size), 2.0),
        "zero": torch.zeros(size, size),
        "one far": 2 * (1 - eye),
        "huge": 1e4 * (1 - 2 * eye),
        "one row far": torch.cat([torch.full((1, size), 1e4), torch.rand(size - 1, size)]),
        "one column wanted by all": 1e4 * (torch.arange(size) > 0).expand(size, size).float(),
    }[kind]


@implementations
@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
@pytest.mark.parametrize(
    "kind", ["equal", "zero", "one far", "huge", "one row far", "one column wanted by all"]
)
def test_finite_costs_give_finite_plans(implementation: str, kind: str, epsilon: float) -> None:
    cost = adversarial(kind).to(DEVICE).requires_grad_()
    found = sinkhorn(cost, epsilon=epsilon, iterations=8, implementation=implementation)
    found.cost.backward()
    assert cost.grad is not None
    for tensor in (found.plan, found.residual, found.cost, cost.grad):
        assert torch.isfinite(tensor).all()
    torch.testing.assert_close(found.plan.sum(dim=0).cpu(), torch.ones(6), atol=1e-3, rtol=0)
    if kind in {"equal", "zero", "one column wanted by all"}:  # all rows are alike
        torch.testing.assert_close(found.plan.cpu(), torch.full((6, 6), 1 / 6), atol=1e-3, rtol=0)
    if kind in {"one far", "huge"} and epsilon <= 0.1:
        torch.testing.assert_close(found.plan.cpu(), torch.eye(6), atol=1e-3, rtol=0)


@implementations
def test_a_nan_is_never_silent(implementation: str) -> None:
    cost = costs(5, 5).detach()
    cost[2, 3] = torch.nan
    found = sinkhorn(cost, epsilon=0.1, iterations=5, implementation=implementation)
    assert found.cost.isnan()
    assert found.residual.isnan()


@implementations
@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4)])
def test_nothing_to_match_is_a_differentiable_zero(implementation: str, shape: tuple[int, ...]) -> None:
    cost = torch.zeros(shape, requires_grad=True)
    found = sinkhorn(cost, epsilon=0.1, iterations=5, implementation=implementation)
    found.cost.sum().backward()
    assert cost.grad is not None
    assert found.plan.shape == shape
    assert found.residual.shape == found.cost.shape == shape[:-2]
    assert not found.cost.any()


def test_half_precision_is_computed_in_float32_and_strides_do_not_matter() -> None:
    low = costs(6, 6, dtype=torch.bfloat16)
    found = sinkhorn(low, epsilon=0.1, iterations=20)
    wide = sinkhorn(low.detach().float(), epsilon=0.1, iterations=20)
    torch.testing.assert_close(found.plan.detach(), wide.plan)
    found.cost.backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16
    turned = low.detach().float().T.contiguous().T
    torch.testing.assert_close(sinkhorn(turned, epsilon=0.1, iterations=20).plan, wide.plan)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 4), {}, r"cost must be \[..., n, n\], found shape \[3, 4\]"),
        ((3,), {}, r"cost must be \[..., n, n\], found shape \[3\]"),
        ((3, 3), {"epsilon": 0.0}, "epsilon must be a finite number > 0, found 0.0"),
        ((3, 3), {"iterations": 0}, "iterations must be >= 1, found 0"),
        ((3, 3), {"gradient": "implicit"}, "gradient must be one of unrolled, envelope, found 'implicit'"),
        ((3, 3), {"implementation": "cuda"}, "implementation must be one of triton, torch, reference"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.zeros(shape), **{"epsilon": 0.1, "iterations": 5, **options})


@needs_triton
def test_triton_says_what_to_do_with_too_many_rows() -> None:
    with pytest.raises(ValueError, match="at most 4096 rows, found 4097; pass implementation='torch'"):
        sinkhorn(torch.zeros(4097, 4097, device=DEVICE), epsilon=0.1, iterations=1, implementation="triton")


@pytest.mark.skipif(interpreted(), reason="Triton's interpreter replaces the compiler")
@pytest.mark.parametrize("size", [16, 256, 4096])
@pytest.mark.parametrize("target", TARGETS)
def test_the_kernels_compile_without_spills(target: str, size: int) -> None:
    from alignkit.kernels.sinkhorn import triton as kernels

    pointers = ("scores_ptr", "f_ptr", "g_ptr", "total_ptr", "row_ptr", "column_ptr")
    signature = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(("problems", "size", "iterations"), "i32")
    shape = kernels.shape(size)
    constants = {name: value for name, value in shape.items() if name.isupper()}
    for fn in (kernels.potentials_kernel, kernels.pull_back_kernel):
        found = compile_for(fn, signature, constants, target, num_warps=shape["num_warps"])
        require_fit(f"{fn.__name__} {size} rows", target, found)
