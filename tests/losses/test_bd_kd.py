"""BD-KD's loss: an independent oracle, the method's identities, who gets which gradient, and extreme inputs."""

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkit.losses import BalancedLoss, balance, bd_kd_loss

GATES = [
    {"gate": "hard"},
    {"gate": "hard", "nu": 1.0},
    {"gate": "hard", "nu": 5.0},
    {"gate": "soft"},
    {"gate": "soft", "kappa": 0.0},
    {"gate": "soft", "kappa": 3.0},
]


def logits(rows: int = 6, vocabulary: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher, float64 leaves; some students more certain than their teacher, some less."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.linspace(0.3, 3, rows, dtype=torch.float64)[:, None]
    student, teacher = (
        torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * width
        for width in (widths, widths.flip(0))
    )
    return student.requires_grad_(), teacher.requires_grad_()


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / math.fsum(weights) for w in weights]


def oracle(
    student: Tensor, teacher: Tensor, temperature: float, options: dict[str, object]
) -> dict[str, Tensor]:
    """The specification, row by row, in Python's floats."""
    found: dict[str, list[float]] = {field.name: [] for field in fields(BalancedLoss)}
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax([x / temperature for x in s]), softmax([x / temperature for x in t])
        forward = math.fsum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
        reverse = math.fsum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        h_student, h_teacher = (-math.fsum(x * math.log(x) for x in d) for d in (q, p))
        gap = h_teacher - h_student
        if options["gate"] == "hard":
            nu = float(options.get("nu", 2.0))
            weights = (nu, 1.0) if gap > 0 else (1.0, nu)
        else:
            share = 1 / (1 + math.exp(-float(options.get("kappa", 1.0)) * gap))
            weights = (share, 1 - share)
        found["student"].append(temperature**2 * (weights[0] * forward + weights[1] * reverse))
        found["teacher"].append(temperature**2 * reverse)
        found["forward_kl"].append(forward)
        found["reverse_kl"].append(reverse)
        found["student_entropy"].append(h_student)
        found["teacher_entropy"].append(h_teacher)
        found["forward_weight"].append(weights[0])
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("options", GATES, ids=str)
def test_matches_the_specification(options: dict[str, object], temperature: float) -> None:
    student, teacher = logits()
    result = bd_kd_loss(student, teacher, temperature=temperature, **options)
    for name, expected in oracle(student, teacher, temperature, options).items():
        torch.testing.assert_close(
            getattr(result, name).detach(), expected, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_both_sides_of_the_gate_are_tested() -> None:
    result = bd_kd_loss(*logits(), gate="hard")
    assert set(result.forward_weight.tolist()) == {1.0, 2.0}


@pytest.mark.parametrize("options", GATES, ids=str)
def test_gradients_against_differences_with_the_weights_held(options: dict[str, object]) -> None:
    """The weights carry no gradient, so differences are taken of the KLs weighted as at the point itself."""
    student, teacher = logits(rows=3, vocabulary=4)
    weights = bd_kd_loss(student, teacher, temperature=2.0, **options).forward_weight
    total = 1.0 if options["gate"] == "soft" else 1.0 + float(options.get("nu", 2.0))
    other = total - weights

    def held(s: Tensor, t: Tensor) -> Tensor:
        log_q, log_p = (s / 2).log_softmax(-1), (t / 2).log_softmax(-1)
        forward = (log_p.exp() * (log_p - log_q)).sum(-1)
        reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
        return 4 * (weights * forward + other * reverse)

    fixed = teacher.detach()
    ours = torch.autograd.grad(
        bd_kd_loss(student, fixed, temperature=2.0, **options).student.sum(), student, retain_graph=True
    )
    torch.testing.assert_close(ours, torch.autograd.grad(held(student, fixed).sum(), student))
    assert torch.autograd.gradcheck(lambda s: held(s, fixed), [student])


@pytest.mark.parametrize("options", [{"gate": "hard"}, {"gate": "soft", "kappa": 0.0}], ids=str)
def test_gradcheck(options: dict[str, object]) -> None:
    """Where the weights are locally constant."""
    student, teacher = logits(rows=3, vocabulary=4)
    assert torch.autograd.gradcheck(
        lambda s: bd_kd_loss(s, teacher.detach(), temperature=1.5, **options).student, [student]
    )
    assert torch.autograd.gradcheck(
        lambda t: bd_kd_loss(student.detach(), t, temperature=1.5, **options).teacher, [teacher]
    )


def test_each_loss_reaches_its_own_side_only() -> None:
    student, teacher = logits()
    result = bd_kd_loss(student, teacher)
    to_student = torch.autograd.grad(
        result.student.sum(), [student, teacher], allow_unused=True, retain_graph=True
    )
    to_teacher = torch.autograd.grad(result.teacher.sum(), [student, teacher], allow_unused=True)
    assert to_student[0] is not None
    assert to_student[1] is None
    assert to_teacher[0] is None
    assert to_teacher[1] is not None
    for name in ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "forward_weight"):
        assert not getattr(result, name).requires_grad


def test_a_frozen_teacher_has_a_value_and_no_gradient() -> None:
    student, teacher = logits()
    joint, frozen = bd_kd_loss(student, teacher), bd_kd_loss(student, teacher.detach())
    assert not frozen.teacher.requires_grad
    torch.testing.assert_close(frozen.teacher, joint.teacher.detach())
    torch.testing.assert_close(frozen.student, joint.student)


@pytest.mark.parametrize("options", GATES, ids=str)
def test_equal_sides_cost_nothing_and_pull_nowhere(options: dict[str, object]) -> None:
    student, _ = logits()
    teacher = student.detach().clone().requires_grad_()
    result = bd_kd_loss(student, teacher, temperature=2.0, **options)
    assert torch.equal(result.student, torch.zeros_like(result.student))
    assert torch.equal(result.teacher, torch.zeros_like(result.teacher))
    gradients = torch.autograd.grad((result.student + result.teacher).sum(), [student, teacher])
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-14, rtol=0)


def jeffreys(student: Tensor, teacher: Tensor) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    return ((p - q) * (p.log() - q.log())).sum(-1)


def test_kappa_zero_is_half_jeffreys_and_nu_one_is_jeffreys() -> None:
    student, teacher = logits()
    soft = bd_kd_loss(student, teacher, gate="soft", kappa=0.0).student
    hard = bd_kd_loss(student, teacher, gate="hard", nu=1.0).student
    torch.testing.assert_close(soft, jeffreys(student, teacher) / 2)
    torch.testing.assert_close(hard, jeffreys(student, teacher))


def test_a_large_kappa_is_pure_forward_kl_for_a_more_certain_student_and_pure_reverse_else() -> None:
    student, teacher = logits()
    result = bd_kd_loss(student, teacher, gate="soft", kappa=1e6)
    certain = result.teacher_entropy > result.student_entropy
    torch.testing.assert_close(result.student[certain], result.forward_kl[certain])
    torch.testing.assert_close(result.student[~certain], result.reverse_kl[~certain])


def test_without_the_reverse_part_and_a_frozen_teacher_it_is_hintons() -> None:
    student, teacher = logits()
    certain, spread = 4 * student, (teacher / 4).detach()
    hinton = 9 * F.kl_div((certain / 3).log_softmax(-1), (spread / 3).softmax(-1), reduction="none").sum(-1)
    ours = bd_kd_loss(certain, spread, temperature=3.0, gate="soft", kappa=1e6)
    rows = ours.forward_weight == 1
    assert rows.sum() >= 3
    torch.testing.assert_close(ours.student[rows], hinton[rows])


def test_swapping_the_sides_mirrors_the_mutual_terms() -> None:
    """The teacher's term is the forward KL seen from the other side: a student of pure forward KL, swapped."""
    certain, spread = (x.detach().requires_grad_() for x in logits(rows=4))
    certain = (3 * certain).detach().requires_grad_()
    as_student = bd_kd_loss(certain, spread, gate="soft", kappa=1e6)
    as_teacher = bd_kd_loss(spread, certain, gate="soft", kappa=1e6)
    rows = as_student.forward_weight == 1
    assert rows.any()
    (mine,) = torch.autograd.grad(as_student.student.sum(), certain)
    (mirrored,) = torch.autograd.grad(as_teacher.teacher.sum(), certain)
    torch.testing.assert_close(as_student.student[rows], as_teacher.teacher[rows])
    torch.testing.assert_close(mine[rows], mirrored[rows])


@pytest.mark.parametrize(
    ("options", "factor"), [({"gate": "soft", "kappa": 0.0}, 1), ({"gate": "hard", "nu": 1.0}, 2)]
)
def test_at_a_high_temperature_the_gradient_is_the_centred_difference(
    options: dict[str, object], factor: int
) -> None:
    student, teacher = logits()
    result = bd_kd_loss(student, teacher, temperature=1e5, **options)
    gap = (student - teacher).detach()
    centred = (gap - gap.mean(-1, keepdim=True)) / gap.shape[1]
    (to_student,) = torch.autograd.grad(result.student.sum(), student)
    (to_teacher,) = torch.autograd.grad(result.teacher.sum(), teacher)
    torch.testing.assert_close(to_student, factor * centred, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(to_teacher, -centred, rtol=1e-3, atol=1e-6)


def test_entropies_at_temperature_one_on_request() -> None:
    student, teacher = logits()
    result = bd_kd_loss(student, teacher, temperature=4.0, tempered_entropy=False)
    at_one = bd_kd_loss(student, teacher, temperature=1.0)
    torch.testing.assert_close(result.student_entropy, at_one.student_entropy)
    torch.testing.assert_close(result.teacher_entropy, at_one.teacher_entropy)
    torch.testing.assert_close(result.forward_kl, bd_kd_loss(student, teacher, temperature=4.0).forward_kl)


@pytest.mark.parametrize("options", GATES, ids=str)
def test_padding_that_both_sides_mask_changes_nothing(options: dict[str, object]) -> None:
    student, teacher = logits()
    padding = torch.full((6, 3), -math.inf, dtype=torch.float64)
    padded_student, padded_teacher = (
        torch.cat([x.detach(), padding], 1).requires_grad_() for x in (student, teacher)
    )
    plain = bd_kd_loss(student, teacher, temperature=2.0, **options)
    padded = bd_kd_loss(padded_student, padded_teacher, temperature=2.0, **options)
    for field in fields(BalancedLoss):
        torch.testing.assert_close(getattr(padded, field.name), getattr(plain, field.name))
    expected = torch.autograd.grad((plain.student + plain.teacher).sum(), [student, teacher])
    found = torch.autograd.grad((padded.student + padded.teacher).sum(), [padded_student, padded_teacher])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[:, :9], theirs)
        assert torch.equal(ours[:, 9:], torch.zeros_like(ours[:, 9:]))


def test_what_the_teacher_excludes_costs_the_forward_kl_nothing_and_the_reverse_everything() -> None:
    student, teacher = (x.detach().clone() for x in logits())
    teacher[:, 0] = -math.inf
    result = bd_kd_loss(student, teacher)
    assert torch.isfinite(result.forward_kl).all()
    assert torch.isinf(result.reverse_kl).all()


def test_divergences_computed_elsewhere_combine_alike() -> None:
    """Divergences without logits, as a fused kernel returns them, give the same loss and gradients."""
    student, teacher = logits()
    ours = bd_kd_loss(student, teacher, temperature=2.0, nu=3.0)
    forward_kl, reverse_kl, teacher_kl = (
        x.clone().requires_grad_() for x in (ours.forward_kl, ours.reverse_kl, ours.reverse_kl)
    )
    combined = balance(
        forward_kl,
        reverse_kl,
        ours.student_entropy,
        ours.teacher_entropy,
        teacher_kl=teacher_kl,
        temperature=2.0,
        nu=3.0,
    )
    for field in fields(BalancedLoss):
        torch.testing.assert_close(getattr(combined, field.name), getattr(ours, field.name))
    gradients = torch.autograd.grad(
        (combined.student + combined.teacher).sum(), [forward_kl, reverse_kl, teacher_kl]
    )
    torch.testing.assert_close(gradients[0], 4 * ours.forward_weight)
    torch.testing.assert_close(gradients[1], 4 * (4 - ours.forward_weight))
    torch.testing.assert_close(gradients[2], torch.full((6,), 4.0, dtype=torch.float64))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.lists(st.floats(-1e4, 1e4, width=16, allow_nan=False), min_size=6, max_size=6),
    st.sampled_from(GATES),
    st.sampled_from([0.5, 1.0, 4.0]),
)
def test_no_finite_input_gives_a_nan(
    dtype: torch.dtype, values: list[float], options: dict[str, object], temperature: float
) -> None:
    padding = torch.full((1, 2), -math.inf, dtype=dtype)
    given = torch.tensor(values, dtype=dtype).view(2, 1, 3)
    student, teacher = (torch.cat([side, padding], 1).requires_grad_() for side in given)
    result = bd_kd_loss(student, teacher, temperature=temperature, **options)
    (result.student + result.teacher).sum().backward()
    for field in fields(BalancedLoss):
        assert torch.isfinite(getattr(result, field.name)).all(), field.name
    assert result.student.dtype == torch.float32
    for value in (result.student, result.teacher, result.student_entropy, result.teacher_entropy):
        assert (value >= -1e-5).all()
    for side in (student, teacher):
        assert side.grad is not None
        assert torch.isfinite(side.grad).all()


def test_no_row_is_a_differentiable_zero() -> None:
    student, teacher = (torch.zeros(0, 7, requires_grad=True) for _ in range(2))
    result = bd_kd_loss(student, teacher)
    (result.student.sum() + result.teacher.sum()).backward()
    assert student.grad is not None
    assert teacher.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0, found 0.0"),
        ({"temperature": math.inf}, "temperature must be a finite number > 0, found inf"),
        ({"nu": 0.5}, "nu must be a finite number >= 1, found 0.5"),
        ({"kappa": -1.0}, "kappa must be a finite number >= 0, found -1.0"),
        ({"gate": "softish"}, "gate must be one of hard, soft, found 'softish'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bd_kd_loss(*logits(), **options)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 7), (4, 8), "must share one vocabulary, found 7 and 8 columns"),
        ((4, 7), (3, 7), "must have the same rows, found 4 and 3"),
        ((2, 4, 7), (2, 4, 7), r"student_logits must be \[rows, vocabulary\], found shape \[2, 4, 7\]"),
        ((4, 7), (7,), r"teacher_logits must be \[rows, vocabulary\], found shape \[7\]"),
    ],
)
def test_shapes_that_differ_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bd_kd_loss(torch.zeros(student), torch.zeros(teacher))
