"""`pairwise_l1` as a custom op, which `torch.compile` passes through without a graph break."""

from typing import Any

import torch
from torch import Tensor

from alignkit.kernels.backend import engine
from alignkit.kernels.head import LogitTransform, Operands, compute_dtype, trains, unwritten_gradients
from alignkit.kernels.pairwise_l1.fused import Measured, measure, needs_mass, pull_back

PACKAGE = str(__package__)


def compiled(student: Operands, teacher: Operands, implementation: str) -> Tensor:
    """Compute D [n, m]. If `teacher` is `student` itself, all gradient goes through the student's arguments."""
    tensors = (*student[:3], *teacher[:3])
    factors = [*student.transform.as_numbers(), *teacher.transform.as_numbers()]
    needs = [trains(tensor) for tensor in tensors]
    same = teacher is student
    distances: Tensor = pairwise_l1_op(*tensors, factors, needs, same, implementation)[0]
    return distances


@torch.library.custom_op("alignkit::pairwise_l1", mutates_args=())
def pairwise_l1_op(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    factors: list[float],
    needs: list[bool],
    same: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return D [n, m], the log-sum-exps of student [n] and teacher [m], and R [n, m].

    `factors` are both sides' logit scale, soft cap (0 for none) and temperature, `needs` names the tensors that need
    gradients. What `fused.Measured` does not have is empty.
    """
    student, teacher = _operands(
        (student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias), factors
    )
    with torch.autocast(student_hidden.device.type, enabled=False):
        found = measure(student, teacher, engine(PACKAGE, implementation), needs, same=same)
    nothing = found.distance.new_empty
    return (
        found.distance,
        found.q_lse,
        nothing(0) if same else found.p_lse,
        nothing(0, 0) if found.mass is None else found.mass,
    )


@pairwise_l1_op.register_fake
def _(student_hidden: Tensor, student_weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    new = student_hidden.new_empty
    dtype = compute_dtype(student_weight)
    n, m = student_hidden.size(0), others[1].size(0)
    needs, same, implementation = others[5:]
    mass = (n, m) if needs_mass(needs, student_weight, engine(PACKAGE, implementation)) else (0, 0)
    shapes: tuple[tuple[int, ...], ...] = (n, m), (n,), (0,) if same else (m,), mass
    return tuple(new(shape, dtype=dtype) for shape in shapes)


@torch.library.custom_op("alignkit::pairwise_l1_gradient", mutates_args=())
def gradient_op(
    upstream: Tensor,
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    distance: Tensor,
    q_lse: Tensor,
    p_lse: Tensor,
    mass: Tensor,
    factors: list[float],
    needs: list[bool],
    same: bool,
    implementation: str,
) -> list[Tensor]:
    """Return the gradients to the operands that `needs` names, to the student's only for a set against itself."""
    student, teacher = _operands(
        (student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias), factors
    )
    whole = engine(PACKAGE, implementation)
    has_mass = needs_mass(needs, student_weight, whole)
    found = Measured(distance, q_lse, q_lse if same else p_lse, mass if has_mass else None)
    with torch.autocast(student_hidden.device.type, enabled=False):
        gradients = pull_back(student, teacher, whole, found, upstream, needs, same=same)
    return [gradient for gradient in gradients if gradient is not None]


@gradient_op.register_fake
def _(upstream: Tensor, *others: Any) -> list[Tensor]:
    *_, needs, same, _ = others
    count = 3 if same else 6
    return unwritten_gradients(others[:count], needs[:count])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.options = inputs[6:]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    _, needs, same, _ = ctx.options
    found = iter(gradient_op(upstream, *ctx.saved_tensors, *ctx.options))
    gradients = [next(found) if need and not (same and at >= 3) else None for at, need in enumerate(needs)]
    return *gradients, *(None,) * 4


pairwise_l1_op.register_autograd(_backward, setup_context=_setup)


def _operands(tensors: tuple[Any, ...], factors: list[float]) -> tuple[Operands, Operands]:
    """Both sides' operands."""
    hidden, weight, bias, other_hidden, other_weight, other_bias = tensors
    student, teacher = LogitTransform.of_numbers(*factors[:3]), LogitTransform.of_numbers(*factors[3:])
    return Operands(hidden, weight, bias, student), Operands(other_hidden, other_weight, other_bias, teacher)
