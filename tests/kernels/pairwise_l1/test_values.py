"""pairwise_l1 against materialised float64 softmax rows: values, every gradient, options, odd and extreme input."""

from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alignkit.kernels import backend, pairwise_l1
from alignkit.kernels.backend import interpreted
from alignkit.kernels.pairwise_l1 import cost
from tests.kernels.aot import TARGETS, compile_for, require_fit
from tests.kernels.interpreted import grid
from tests.kernels.pairwise_l1.oracle import DEVICE, NAMES, WARPED, compare, inputs, oracle, relative

needs_triton = pytest.mark.skipif(
    not (torch.cuda.is_available() or interpreted()), reason="needs a GPU, or TRITON_INTERPRET=1"
)
implementations = pytest.mark.parametrize(
    "implementation", ["reference", "torch", pytest.param("triton", marks=needs_triton)]
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks even for small inputs, the last one short."""
    monkeypatch.setattr(cost, "NARROWEST_BLOCK", 37)
    monkeypatch.setattr(cost, "CPU_BLOCK_BYTES", 0)
    monkeypatch.setattr(cost, "GPU_BLOCK_BYTES", 0)
    monkeypatch.setattr(cost, "KEPT_BYTES", 0)


@implementations
@pytest.mark.parametrize(
    ("options", "training", "dtype"),
    grid(
        [{}, WARPED],
        [(), NAMES[:1], NAMES[:3], NAMES, ("teacher_weight",), ("student_bias",)],
        [torch.float32, torch.float64],
        representative=("001", "030", "131", "110", "120", "041", "150"),
    ),
)
def test_values_and_gradients(
    implementation: str, options: dict[str, Any], training: tuple[str, ...], dtype: torch.dtype
) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    compare(inputs(padding=4), options, training, dtype, tolerance, implementation)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 120),
    st.integers(0, 3),
    st.integers(0, 10_000),
    st.sampled_from([0.05, 1.0, 4.0]),
    st.sampled_from([{}, WARPED]),
    st.sets(st.sampled_from(NAMES)),
    st.booleans(),
)
def test_any_shape_and_option(
    rows: int,
    others: int,
    vocabulary: int,
    padding: int,
    seed: int,
    width: float,
    options: dict[str, Any],
    training: set[str],
    biased: bool,
) -> None:
    """In float64, where near ties of two probabilities do not blur the gradient."""
    operands = inputs(rows, others, vocabulary, padding=padding, seed=seed, width=width)
    if not biased:
        operands = {name: value for name, value in operands.items() if "bias" not in name}
    compare(operands, options, tuple(training & operands.keys()), torch.float64, 1e-8)


@pytest.mark.parametrize(
    "implementation",
    [
        "reference",
        "torch",
        # the interpreter would take minutes: a program takes one column at a time
        pytest.param("triton", marks=pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")),
    ],
)
@pytest.mark.parametrize(
    ("training", "dtype", "tolerance"),
    [
        (NAMES, torch.float64, 1e-10),
        # no gradient of a column alone: in float32 two probabilities of 128,257 may round to one; and
        # some processors' BLAS adds the products of so narrow a matrix one after another
        (("student_hidden", "teacher_hidden"), torch.float32, 5e-4),
    ],
)
def test_a_vocabulary_of_128257(
    implementation: str,
    training: tuple[str, ...],
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One added token makes it odd; the engines' own blocks and splits."""
    monkeypatch.undo()
    compare(inputs(2, 3, 128_257), {}, training, dtype, tolerance, implementation)


@implementations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_a_hundredth(implementation: str, dtype: torch.dtype) -> None:
    compare(inputs(12, 10, 201, width=0.3), {}, NAMES, dtype, 1e-2, implementation)


@implementations
def test_a_set_against_itself_trains_from_both_sides(implementation: str) -> None:
    operands = inputs()
    low = {k: v.float().to(DEVICE).requires_grad_() for k, v in operands.items() if "student" in k}
    low["student_weight"].requires_grad_(False)
    exact = {k: v.detach().cpu().double().requires_grad_(v.requires_grad) for k, v in low.items()}
    both = {k.replace("student", side): v for k, v in exact.items() for side in ("student", "teacher")}
    expected = oracle(both, {})
    found = pairwise_l1(
        **low, **{k.replace("student", "teacher"): v for k, v in low.items()}, implementation=implementation
    )
    assert not found.diagonal().any()
    assert relative(found, expected) < 1e-5
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * upstream.to(found)).sum().backward()
    (expected * upstream).sum().backward()
    for name in ("student_hidden", "student_bias"):
        assert relative(low[name].grad, exact[name].grad) < 1e-5
    assert low["student_weight"].grad is None


@pytest.mark.parametrize("options", [{}, WARPED])
def test_logits_that_are_kept_change_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> tuple[Tensor, ...]:
        operands = {name: value.requires_grad_() for name, value in inputs(padding=4).items()}
        distances = pairwise_l1(**operands, **options, implementation="torch")
        return distances.detach(), *torch.autograd.grad(distances.square().sum(), list(operands.values()))

    expected = found()
    monkeypatch.setattr(cost, "KEPT_BYTES", 2**20)
    for one, other in zip(found(), expected, strict=True):
        assert torch.equal(one, other)


def test_the_number_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes forward; back the logits once more and one product for each gradient. A set against itself: half.

    With frozen heads one product more, in place of R. Logits that are few are made once for both passes.
    """

    class Count(TorchDispatchMode):
        products = 0.0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in {torch.ops.aten.addmm.out, torch.ops.aten.mm.out}:
                left, right = args[-2:]
                self.products += left.size(0) * left.size(1) * right.size(1) / (6 * 8 * 101)
            return func(*args, **(kwargs or {}))

    def products(teacher: Tensor) -> float:
        with Count() as counter:
            pairwise_l1(hidden, weight, teacher, weight).sum().backward()
        return counter.products

    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(101, 8)
    assert products(hidden) == pytest.approx(2 + 3)
    assert products(hidden.detach().clone()) == pytest.approx(4 + 4)
    weight.requires_grad_()
    assert products(hidden) == pytest.approx(2 + 3)
    monkeypatch.setattr(cost, "KEPT_BYTES", 4 * 6 * 101)
    assert products(hidden) == pytest.approx(1 + 3)
    assert products(hidden.detach().clone()) == pytest.approx(4 + 5)


@implementations
def test_equal_rows_are_at_zero_without_a_gradient(implementation: str) -> None:
    """The subgradient between equals is 0, and each row's own term follows."""
    operands = {name: value.float().to(DEVICE) for name, value in inputs(4, 4).items() if "student" in name}
    hidden = operands["student_hidden"].requires_grad_()
    teacher = {name.replace("student", "teacher"): value.detach().clone() for name, value in operands.items()}
    found = pairwise_l1(**operands, **teacher, implementation=implementation)
    found.diagonal().sum().backward()
    assert not found.diagonal().any()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@implementations
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_stay_exact(implementation: str, scale: float) -> None:
    identity = torch.eye(5, device=DEVICE)
    hidden = (identity[:4] * scale).requires_grad_()
    found = pairwise_l1(hidden, identity, identity[1:] * scale, identity, implementation=implementation)
    found.sum().backward()
    eye = torch.eye(5, dtype=torch.float64)
    names = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")
    expected = oracle(dict(zip(names, (eye[:4] * scale, eye, eye[1:] * scale, eye), strict=True)), {})
    assert relative(found, expected) < 1e-6
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


@implementations
def test_columns_of_minus_infinity_count_for_nothing(implementation: str) -> None:
    operands = {name: value.float().to(DEVICE) for name, value in inputs().items()}
    short = {name: value if "hidden" in name else value[:80] for name, value in operands.items()}
    masked = dict(operands)
    for name in ("student_bias", "teacher_bias"):
        masked[name] = operands[name].index_fill(0, torch.arange(80, 101, device=DEVICE), -torch.inf)
    gradients = []
    for case in (masked, short):
        case["student_hidden"] = case["student_hidden"].detach().requires_grad_()
        case["student_weight"] = case["student_weight"].detach().requires_grad_()
        found = pairwise_l1(**case, implementation=implementation)
        assert relative(found, oracle({n: v.detach().cpu().double() for n, v in short.items()}, {})) < 1e-5
        (found * torch.linspace(-1, 1, found.numel()).view(found.shape).to(found)).sum().backward()
        gradients.append((case["student_hidden"].grad, case["student_weight"].grad))
    (hidden, weight), (expected_hidden, expected_weight) = gradients
    torch.testing.assert_close(hidden, expected_hidden, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight[:80], expected_weight, rtol=1e-4, atol=1e-6)
    assert not weight[80:].any()


@implementations
def test_a_column_only_one_side_masks_is_that_sides_zero(implementation: str) -> None:
    operands = inputs()
    operands["student_bias"][50:] = -torch.inf
    compare(operands, {}, ("student_hidden", "teacher_hidden"), torch.float32, 1e-5, implementation)


@pytest.mark.parametrize("shape", [(0, 4, 11), (4, 0, 11), (0, 0, 11), (3, 2, 1)])
@implementations
def test_empty_sets_and_a_vocabulary_of_one(implementation: str, shape: tuple[int, int, int]) -> None:
    operands = {k: v.float().to(DEVICE).requires_grad_() for k, v in inputs(*shape).items()}
    found = pairwise_l1(**operands, implementation=implementation)
    found.sum().backward()
    assert found.shape == shape[:2]
    assert not found.any()
    for value in operands.values():
        assert value.grad is None or not value.grad.any()


def test_rows_without_a_common_word_are_at_two() -> None:
    hidden, weight = torch.eye(4) * 100, torch.eye(4)
    found = pairwise_l1(hidden[:2], weight, hidden[2:], weight)
    torch.testing.assert_close(found, torch.full((2, 2), 2.0))


@pytest.mark.parametrize("name", NAMES)
@implementations
def test_a_nan_is_never_silent(implementation: str, name: str) -> None:
    operands = {k: v.float().to(DEVICE) for k, v in inputs().items()}
    operands[name].flatten()[3] = torch.nan
    assert pairwise_l1(**operands, implementation=implementation).isnan().any()


def test_non_contiguous_operands_and_gradients() -> None:
    operands = {k: v.float() for k, v in inputs().items()}
    spread = {
        k: v.T.contiguous().T if v.dim() == 2 else v.repeat_interleave(2)[::2] for k, v in operands.items()
    }
    assert not any(value.is_contiguous() for value in spread.values())
    compare(operands, {}, NAMES, torch.float32, 1e-5)
    gradients = []
    for case in (operands, spread):
        leaves = {k: v.detach().requires_grad_() for k, v in case.items()}
        gradients.append(torch.autograd.grad(pairwise_l1(**leaves).T[1:].sum(), list(leaves.values())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_autocast_decides_the_products_precision() -> None:
    operands = {k: v.float() for k, v in inputs(width=0.3).items()}
    exact = oracle({k: v.double() for k, v in operands.items()}, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pairwise_l1(**{k: v.requires_grad_() for k, v in operands.items()})
    found.sum().backward()
    assert found.dtype == torch.float32
    assert 1e-6 < relative(found, exact) < 3e-2
    assert operands["student_weight"].grad.dtype == torch.float32


def test_no_tensor_of_rows_by_vocabulary_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple | list) else [out]
            largest = max(largest, *chain([0], (x.numel() for x in made if isinstance(x, Tensor))))
            return out

    rows, vocabulary = 100, 30_000
    hidden, weight = (torch.randn(size, 8, requires_grad=True) for size in (rows, vocabulary))
    with Watch():
        pairwise_l1(hidden, weight, torch.randn(rows, 8), torch.randn(vocabulary, 8)).sum().backward()
    assert largest <= max(cost.CPU_BLOCK_BYTES // 4, weight.numel()) < rows * vocabulary / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_hidden": torch.zeros(3, 9)}, r"expected student_hidden \[rows, H\] and student_weight"),
        ({"teacher_hidden": torch.zeros(3, 2, 11)}, r"found \[3, 2, 11\] and \[101, 11\]"),
        ({"teacher_weight": torch.zeros(0, 11)}, r"V >= 1, found \[0, 11\]"),
        ({"student_bias": torch.zeros(100)}, r"student_bias must have shape \[101\], found \[100\]"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0, found 0.0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise_l1(**{**{k: v.float() for k, v in inputs().items()}, **change})


def test_the_environment_chooses_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = {name: value.requires_grad_() for name, value in inputs().items()}
    names = []
    for chosen in ("reference", "torch"):
        monkeypatch.setenv(backend.VARIABLE, chosen)
        names.append(pairwise_l1(**operands).grad_fn.name())
    assert names == ["CdistBackward0", "_PairwiseL1Backward"]


@pytest.mark.skipif(interpreted(), reason="Triton's interpreter replaces the compiler")
@pytest.mark.parametrize("target", TARGETS)
def test_the_kernels_compile_without_spills(target: str) -> None:
    from alignkit.kernels.pairwise_l1 import triton as kernels

    pointers = ("q_ptr", "p_ptr", "distances_ptr", "mass_ptr", "upstream_ptr", "sums_ptr")
    signature = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(("n", "m", "width", "split"), "i32")
    block = {"BLOCK": kernels.BLOCK}
    for fn, constants, warps in (
        (kernels.distances_kernel, block | {"WANT_MASS": True}, kernels.DISTANCES_WARPS),
        (kernels.distances_kernel, block | {"WANT_MASS": False}, kernels.DISTANCES_WARPS),
        (kernels.sign_sums_kernel, block, kernels.SIGNS_WARPS),
    ):
        name = fn.__name__ + " with mass" * constants.get("WANT_MASS", False)
        require_fit(name, target, compile_for(fn, signature, constants, target, num_warps=warps))
