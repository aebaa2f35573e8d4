"""linear_divergence against materialised float64 logits: values, every gradient, options, odd and extreme input."""

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from alignkit.kernels.backend import interpreted
from alignkit.kernels.linear_divergence import cost
from alignkit.losses.bd_kd import balance, bd_kd_loss
from tests.kernels.interpreted import few, grid, thorough
from tests.kernels.linear_divergence.oracle import (
    NAMES,
    STUDENT,
    TEACHER,
    WARPED,
    call,
    compare,
    inputs,
    oracle,
    relative,
    upstream,
    values,
)

LORA = ("student_hidden",)
MUTUAL_LORA = ("student_hidden", "teacher_hidden")
STUDENT_TRAINS = NAMES[:3]

needs_triton = pytest.mark.skipif(
    not (torch.cuda.is_available() or interpreted()), reason="needs a GPU, or TRITON_INTERPRET=1"
)
implementations = pytest.mark.parametrize(
    "implementation", ["reference", "torch", pytest.param("triton", marks=needs_triton)]
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and several blocks in one, even for small inputs; the last ones short."""
    monkeypatch.setattr(cost, "CPU_CHUNK_BYTES", 4 * 41 * 5)
    monkeypatch.setattr(cost, "CPU_BLOCK_BYTES", 4 * 41 * 2)
    monkeypatch.setattr(cost, "GPU_BUFFER_BYTES", 2 * 4 * 64 * 5)
    if interpreted():
        from alignkit.kernels.linear_divergence import triton as engine

        monkeypatch.setattr(engine, "LANES", 64)
        monkeypatch.setattr(engine, "GRADIENT_BLOCK", 256)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("options", [{}, {"temperature": 2.5}, WARPED])
@pytest.mark.parametrize("training", [LORA, MUTUAL_LORA, STUDENT_TRAINS, NAMES, ("teacher_weight",), ()])
def test_values_and_gradients(
    implementation: str, options: dict[str, Any], training: tuple[str, ...]
) -> None:
    compare(inputs(13, 41), options, training, STUDENT + TEACHER, implementation=implementation)


@needs_triton
@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({}, MUTUAL_LORA),
        ({"temperature": 2.5}, LORA),
        thorough({}, STUDENT_TRAINS),
        thorough(WARPED, LORA),
        (WARPED, NAMES),
    ],
)
def test_values_and_gradients_of_triton(options: dict[str, Any], training: tuple[str, ...]) -> None:
    compare(inputs(4, 41), options, training, STUDENT + TEACHER, implementation="triton")


@implementations
@pytest.mark.parametrize("shape", [thorough((1, 41)), (5, 1), (2, 1000), thorough((11, 2))])
def test_shapes_that_divide_by_nothing(implementation: str, shape: tuple[int, int]) -> None:
    made = inputs(few(shape[0], 3), shape[1])
    compare(made, {}, LORA, ("forward_kl", "student_ce"), implementation=implementation)
    compare(made, WARPED, NAMES, STUDENT + TEACHER, implementation=implementation)


@pytest.mark.parametrize("training", [LORA, MUTUAL_LORA, NAMES])
def test_any_combination_of_outputs_may_be_used(training: tuple[str, ...]) -> None:
    made = inputs(7, 19)
    able = STUDENT + TEACHER if "teacher_hidden" in training else STUDENT
    for size in (1, 2, len(able)):
        for used in combinations(able, size):
            mine, theirs = (made.leaves(torch.float64, training) for _ in range(2))
            # all could carry gradient, and only those used do
            found = values(call(mine, made.labels, **WARPED))
            expected, above = oracle(theirs, made.labels, WARPED), upstream(used, 7)
            for outputs in (found, expected):
                sum((outputs[name] * above[name]).sum() for name in used).backward()
            for name in training:
                if theirs[name].grad is None:
                    assert mine[name].grad is None or not mine[name].grad.any()
                else:
                    torch.testing.assert_close(mine[name].grad, theirs[name].grad)


@pytest.mark.parametrize("training", [LORA, STUDENT_TRAINS])
def test_gradients_are_those_of_finite_differences(training: tuple[str, ...]) -> None:
    made = inputs(5, 11)
    leaves = made.leaves(torch.float64, training)

    def outputs(*changed: Tensor) -> tuple[Tensor, ...]:
        found = call({**leaves, **dict(zip(training, changed, strict=True))}, made.labels, **WARPED)
        return found.forward_kl, found.reverse_kl, found.student_ce

    assert torch.autograd.gradcheck(outputs, [leaves[name] for name in training])


@given(
    count=st.integers(0, 12),
    vocabulary=st.integers(1, 60),
    temperature=st.floats(0.3, 8),
    softcap=st.none() | st.floats(2, 50),
    scale=st.floats(0.1, 3),
    tempered=st.booleans(),
    training=st.sampled_from([LORA, MUTUAL_LORA, NAMES]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 10.0]),
)
@example(
    count=1,
    vocabulary=11,
    temperature=0.375,
    softcap=None,
    scale=2.0,
    tempered=True,
    training=MUTUAL_LORA,
    size=10.0,
)  # probabilities that are 0
@settings(max_examples=60, deadline=None)
def test_any_shape_and_options(
    count: int,
    vocabulary: int,
    temperature: float,
    softcap: float | None,
    scale: float,
    tempered: bool,
    training: tuple[str, ...],
    size: float,
) -> None:
    options = {
        "temperature": temperature,
        "student_softcap": softcap,
        "teacher_logit_scale": scale,
        "tempered_entropy": tempered,
    }
    made, used = inputs(count, vocabulary, size=size), STUDENT + TEACHER
    compare(made, options, training, used, implementation="torch", dtype=torch.float64, tolerance=1e-9)


@implementations
@pytest.mark.parametrize("training", [thorough(LORA), thorough(MUTUAL_LORA), NAMES])
def test_bd_kd_needs_one_call(implementation: str, training: tuple[str, ...]) -> None:
    made = inputs(few(9), 41)
    mine, theirs = (made.leaves(torch.float64, training) for _ in range(2))
    found = call(mine, made.labels, temperature=2.0, implementation=implementation)
    loss = balance(
        found.forward_kl,
        found.reverse_kl,
        found.student_entropy,
        found.teacher_entropy,
        teacher_kl=found.teacher_reverse_kl,
        temperature=2.0,
    )
    (loss.student + loss.teacher + found.student_ce + found.teacher_ce).sum().backward()
    logits = [
        theirs[f"{side}_hidden"] @ theirs[f"{side}_weight"].T + theirs[f"{side}_bias"]
        for side in ("student", "teacher")
    ]
    expected = bd_kd_loss(*logits, temperature=2.0)
    tasks = sum(torch.nn.functional.cross_entropy(x, made.labels, reduction="sum") for x in logits)
    (expected.student.sum() + expected.teacher.sum() + tasks).backward()
    tolerance = 1e-4 if implementation == "triton" else 1e-9
    for name in training:
        assert relative(mine[name].grad, theirs[name].grad) < tolerance


@implementations
@pytest.mark.parametrize(
    ("training", "even"),
    [
        (LORA, False),
        thorough(MUTUAL_LORA, False),
        thorough(STUDENT_TRAINS, True),
        thorough(NAMES, False),
        (NAMES, True),
    ],
)
def test_an_objective_is_the_same_loss(implementation: str, training: tuple[str, ...], even: bool) -> None:
    """Heads that train have their gradient from the forward if all losses have one upstream gradient."""
    made = inputs(few(9), 41)

    def objective(d: Any) -> Tensor:
        teacher = 0 if d.teacher_reverse_kl is None else d.teacher_reverse_kl * 0.5 + d.teacher_ce
        gate = (d.teacher_entropy - d.student_entropy).detach().sigmoid()
        return gate * d.forward_kl + (1 - gate) * d.reverse_kl.square() + d.student_ce + teacher

    mine, theirs = (made.leaves(torch.float64, training) for _ in range(2))
    above = torch.linspace(0.7 if even else -1, 0.7 if even else 2, len(made.labels), dtype=torch.float64)
    found = call(mine, made.labels, objective=objective, implementation=implementation)
    expected = objective(call(theirs, made.labels, implementation="reference"))
    assert not found.forward_kl.requires_grad
    (found.loss * above).sum().backward()
    (expected * above).sum().backward()
    tolerance = 1e-4 if implementation == "triton" else 1e-9
    assert relative(found.loss, expected) < tolerance
    for name in training:
        assert relative(mine[name].grad, theirs[name].grad) < tolerance


@pytest.mark.parametrize("training", [LORA, STUDENT_TRAINS])
def test_an_objective_s_gradient_is_the_same_at_a_second_backward(training: tuple[str, ...]) -> None:
    leaves = inputs(9, 41).leaves(torch.float64, training)
    found = call(leaves, None, objective=lambda d: d.forward_kl.square())
    loss = found.loss.mean()
    loss.backward(retain_graph=True)
    once = {name: leaves[name].grad.clone() for name in training}
    loss.backward()
    for name in training:
        torch.testing.assert_close(leaves[name].grad, 2 * once[name])


def test_an_objective_must_make_one_loss_a_row() -> None:
    made = inputs(4, 9)
    with pytest.raises(ValueError, match="one loss per row"):
        call(made.leaves(torch.float32, LORA), None, objective=lambda d: d.forward_kl.mean())


@pytest.mark.parametrize(("beta", "name"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_the_ends_of_trls_generalised_jsd_are_the_kls(beta: float, name: str) -> None:
    made = inputs(6, 30)
    mine, theirs = (made.leaves(torch.float32, STUDENT_TRAINS) for _ in range(2))
    found = call(mine, None, temperature=1.5)
    expected, entropy = ChunkedDivergenceFunction.apply(*(theirs[name] for name in NAMES), beta, 1.5)
    assert relative(getattr(found, name), expected) < 1e-5
    assert relative(found.student_entropy, entropy) < 1e-5
    getattr(found, name).sum().backward()
    expected.sum().backward()
    for name in STUDENT_TRAINS:
        assert relative(mine[name].grad, theirs[name].grad) < 2e-5


@implementations
def test_ignored_rows_are_zero_and_get_no_gradient(implementation: str) -> None:
    made = inputs(6, 41)
    labels = made.labels.clone()
    labels[[1, 3, 4]] = -100
    leaves = made.leaves(torch.float32, MUTUAL_LORA)
    found = values(call(leaves, labels, top1=True, implementation=implementation))
    kept = values(
        call({**made.leaves(torch.float32, ())}, made.labels, top1=True, implementation=implementation)
    )
    ignored = labels == -100
    for name, value in kept.items():
        assert not found[name][ignored].any(), name
        torch.testing.assert_close(found[name][~ignored].detach(), value[~ignored])
    (found["forward_kl"] + found["student_ce"] + found["teacher_reverse_kl"]).sum().backward()
    for name in MUTUAL_LORA:
        assert not leaves[name].grad[ignored].any()
        assert leaves[name].grad[~ignored].any(dim=1).all()


@implementations
@pytest.mark.parametrize("training", [LORA, NAMES])
@pytest.mark.parametrize("count", [0, 4])
def test_no_valid_token_is_a_differentiable_zero(
    implementation: str, training: tuple[str, ...], count: int
) -> None:
    leaves = inputs(count, 41).leaves(torch.float32, training)
    found = call(leaves, torch.full((count,), -100), implementation=implementation)
    loss = (found.forward_kl + found.student_ce).sum()
    loss.backward()
    assert float(loss.detach()) == 0.0
    for name in training[:3]:
        assert leaves[name].grad is not None
        assert not leaves[name].grad.any()


@implementations
@pytest.mark.parametrize("training", [thorough(LORA), NAMES])
def test_a_column_of_minus_infinity_in_both_heads_counts_for_nothing(
    implementation: str, training: tuple[str, ...]
) -> None:
    made = inputs(few(7), 41)
    padded, short = made.leaves(torch.float64, ()), made.leaves(torch.float64, ())
    for side in ("student", "teacher"):
        padded[f"{side}_bias"][30:] = -torch.inf
        for part in ("weight", "bias"):
            short[f"{side}_{part}"] = short[f"{side}_{part}"][:30]
    options = {"temperature": 1.5, "tempered_entropy": False}
    labels, outputs = made.labels % 30, []
    for x, name in ((padded, implementation), (short, "reference")):
        for key in training:
            x[key].requires_grad_()
        found = values(call(x, labels, implementation=name, **options))
        sum(value.sum() for value in found.values() if value.requires_grad).backward()
        outputs.append(found)
    for key, value in outputs[1].items():
        assert relative(outputs[0][key], value) < 1e-5, key
    for key in training:
        whole, part = padded[key].grad, short[key].grad
        assert torch.isfinite(whole).all()
        assert relative(whole if "hidden" in key else whole[:30], part) < 1e-5, key


@implementations
def test_a_column_of_minus_infinity_on_one_side_makes_a_kl_infinite(implementation: str) -> None:
    for side, infinite, finite in (
        ("student", "forward_kl", "reverse_kl"),
        ("teacher", "reverse_kl", "forward_kl"),
    ):
        x = inputs(5, 41).leaves(torch.float32, LORA)
        x[f"{side}_bias"][-3:] = -torch.inf
        found = values(call(x, None, implementation=implementation))
        assert (found[infinite] == torch.inf).all()
        others = [finite, "student_entropy", "teacher_entropy"]
        assert all(torch.isfinite(found[name]).all() for name in others)
        found[finite].sum().backward()
        assert torch.isfinite(x["student_hidden"].grad).all()


@implementations
@pytest.mark.parametrize(("student", "teacher"), grid([1e4, -1e4], [1e4, -1e4], representative=("01", "10")))
def test_huge_logits(implementation: str, student: float, teacher: float) -> None:
    eye = torch.eye(5)
    rows = torch.cat([eye, eye[[1, 2, 3, 4, 0]] / 2])
    hidden, other = (rows * student).requires_grad_(), rows.flip(0) * teacher
    x = {"student_hidden": hidden, "student_weight": eye, "teacher_hidden": other, "teacher_weight": eye}
    labels = torch.arange(10) % 5
    found = values(call(x, labels, implementation=implementation))
    double = {k: v.detach().double() for k, v in x.items()}
    double |= {f"{side}_bias": torch.zeros(5).double() for side in ("student", "teacher")}
    for name, expected in oracle(double, labels, {}).items():
        if name in found:
            torch.testing.assert_close(found[name].detach().double(), expected, atol=1e-6, rtol=1e-5)
    sum(value.sum() for value in found.values() if value.requires_grad).backward()
    assert torch.isfinite(hidden.grad).all()


@implementations
def test_equal_models_are_at_zero_and_stay(implementation: str) -> None:
    made = inputs(6, 41, widths=(7, 7), size=30.0).leaves(torch.float32, ())
    for part in ("weight", "bias", "hidden"):
        made[f"teacher_{part}"] = made[f"student_{part}"]
    hidden = made["student_hidden"].clone().requires_grad_()
    found = call({**made, "student_hidden": hidden}, None, implementation=implementation)
    assert not found.forward_kl.any()
    assert not found.reverse_kl.any()
    (found.forward_kl + found.reverse_kl).sum().backward()
    assert not hidden.grad.any()


@implementations
def test_a_nan_is_never_silent(implementation: str) -> None:
    x = inputs(4, 41).leaves(torch.float32, ())
    x["student_hidden"][2, 0] = torch.nan
    found = values(call(x, None, implementation=implementation))
    for name in ("forward_kl", "reverse_kl", "student_entropy"):
        assert found[name].isnan().tolist() == [False, False, True, False], name


@implementations
def test_vocabularies_share_their_first_columns(implementation: str) -> None:
    made = inputs(few(6), 41)
    long, short = made.leaves(torch.float32, NAMES), made.leaves(torch.float32, ())
    for part in ("weight", "bias"):
        short[f"teacher_{part}"] = short[f"teacher_{part}"][:37]
        short[f"student_{part}"] = short[f"student_{part}"][:37]
        long[f"teacher_{part}"] = long[f"teacher_{part}"][:37]
    labels = made.labels % 37
    found, expected = (values(call(x, labels, implementation=implementation)) for x in (long, short))
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value)
    found["forward_kl"].sum().backward()
    assert long["student_weight"].grad.shape == (41, 6)
    assert not long["student_weight"].grad[37:].any()


@implementations
@pytest.mark.parametrize("training", [thorough(LORA), NAMES])
def test_bfloat16_is_within_a_hundredth(implementation: str, training: tuple[str, ...]) -> None:
    made = inputs(few(9, 3), 500, widths=(64, 96), size=0.3)
    compare(
        made,
        {},
        training,
        ("forward_kl", "reverse_kl", "student_ce"),
        implementation=implementation,
        dtype=torch.bfloat16,
        tolerance=1e-2,
    )


@implementations
@pytest.mark.parametrize(
    ("dtype", "logits"),
    grid([torch.bfloat16, torch.float16], ["float32", "bf16"], representative=("00", "11")),
)
def test_sixteen_bits_and_an_odd_vocabulary(
    implementation: str, dtype: torch.dtype, logits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Triton the last gradient then lies over its side's logits."""
    monkeypatch.setenv("ALIGNKIT_LOGITS", logits)
    compare(
        inputs(few(7, 3), 301, widths=(16, 24), size=0.3, seed=153),
        {"student_softcap": 30.0},
        MUTUAL_LORA,
        STUDENT + TEACHER,
        implementation=implementation,
        dtype=dtype,
        tolerance=2e-2,
    )


@pytest.mark.parametrize(
    "implementation",
    ["reference", "torch", pytest.param("triton", marks=[needs_triton, pytest.mark.slow])],
)
@pytest.mark.parametrize("training", [thorough(LORA), NAMES])
def test_a_vocabulary_of_128257(
    implementation: str, training: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One added token makes it odd; the engines' own chunks and tiles."""
    monkeypatch.undo()
    made = inputs(1, 128_257, widths=(3, 4))
    made.labels[0] = 128_256
    # a gradient is a float32 sum over all columns of terms that cancel
    compare(made, {}, training, STUDENT + TEACHER, implementation=implementation, tolerance=5e-5)


def test_float16() -> None:
    compare(
        inputs(9, 50, widths=(16, 24)),
        {"temperature": 2.0},
        NAMES,
        ("forward_kl", "reverse_kl", "student_ce", "teacher_reverse_kl"),
        implementation="torch",
        dtype=torch.float16,
        tolerance=5e-3,
    )


@implementations
def test_non_contiguous_input_and_autocast(implementation: str) -> None:
    made = inputs(12, 30)
    x = {n: (v.T.contiguous().T if v.dim() == 2 else v) for n, v in made.leaves(torch.float32, ()).items()}
    expected = oracle(made.operands, made.labels, {})
    found = values(call(x, made.labels.repeat_interleave(2)[::2], implementation=implementation))
    for name, value in found.items():
        assert relative(value, expected[name]) < 1e-5, name
    hidden = x["student_hidden"].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = call({**x, "student_hidden": hidden}, made.labels, implementation=implementation)
        low.forward_kl.sum().backward()
    assert relative(low.forward_kl, expected["forward_kl"]) < 3e-2
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("training", "labelled", "objective", "units"),
    [
        ((), False, None, 4),
        (LORA, False, lambda d: d.forward_kl, 6),
        (LORA, False, None, 8),
        (LORA, True, None, 10),
        (LORA, True, lambda d: d.forward_kl + d.reverse_kl + d.student_ce, 6),
        (MUTUAL_LORA, True, None, 12),
        (MUTUAL_LORA, True, lambda d: d.forward_kl + d.teacher_reverse_kl, 8),
        (NAMES[:2], True, None, 12),
        (NAMES[:2], True, lambda d: d.forward_kl + d.student_ce, 8),
        (NAMES, True, lambda d: d.forward_kl + d.teacher_reverse_kl, 12),
        (NAMES, True, None, 16),
    ],
)
def test_flops_are_those_of_the_docstring(
    training: tuple[str, ...], labelled: bool, objective: Any, units: int
) -> None:
    made = inputs(8, 41, widths=(10, 10))
    with FlopCounterMode(display=False) as counter:
        found = values(
            call(
                made.leaves(torch.float32, training),
                made.labels if labelled else None,
                objective=objective,
            )
        )
        used = [value.sum() for value in found.values() if value.requires_grad]
        if used:
            sum(used).backward()
    products = sum(
        flops
        for op, flops in counter.get_flop_counts()["Global"].items()
        if "mm" in str(op) and "bmm" not in str(op)
    )
    assert products == units * 8 * 10 * 41


@pytest.mark.parametrize(("training", "rows"), [((), 40), (LORA, 50), (MUTUAL_LORA, 80), (NAMES, 80)])
def test_no_tensor_of_tokens_by_vocabulary_is_made(
    training: tuple[str, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer that a gradient shares with its logits leaves its bytes to the others: 5 of 4, or 4 of 2."""
    monkeypatch.setattr(cost, "CPU_CHUNK_BYTES", 4 * 20_000 * 40)
    monkeypatch.setattr(cost, "CPU_BLOCK_BYTES", 4 * 20_000 * 20)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes() // value.element_size())
            return out

    leaves = inputs(200, 20_000).leaves(torch.float32, training)
    with Watch():
        found = values(call(leaves, torch.zeros(200, dtype=torch.long)))
        if training:
            sum(value.sum() for value in found.values() if value.requires_grad).backward()
    assert largest == rows * 20_000


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"student_hidden": torch.zeros(3, 5)}, {}, r"expected student_hidden \[rows, H\]"),
        ({"teacher_hidden": torch.zeros(2, 9)}, {}, "same rows, found 3 and 2"),
        ({"teacher_bias": torch.zeros(8)}, {}, "bias must have shape"),
        ({}, {"labels": torch.zeros(2, dtype=torch.long)}, "labels must have shape"),
        ({}, {"labels": torch.tensor([0, 1, 7])}, "below the shared vocabulary of 7, found 7"),
        ({}, {"labels": torch.tensor([0, -1, 3])}, "shared vocabulary of 7, found -1"),
        ({}, {"temperature": 0.0}, "temperature must be a finite number > 0"),
        ({}, {"top1": True}, "top1 needs labels to compare with"),
        ({}, {"implementation": "numpy"}, "must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    change: dict[str, Tensor], options: dict[str, Any], message: str
) -> None:
    leaves = {**inputs(3, 7).leaves(torch.float32, ()), **change}
    labels = options.pop("labels", None)
    with pytest.raises(ValueError, match=message):
        call(leaves, labels, **options)
