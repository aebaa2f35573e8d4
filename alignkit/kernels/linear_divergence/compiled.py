"""`linear_divergence` as a custom op, which `torch.compile` passes through without a graph break.

A graph holds tensors, so an objective cannot be called for a few rows within the op. It is applied to the op's
outputs instead, as a part of the graph, and the backward recomputes the logits: 10 N H V flops with frozen heads and
12 if the student's head trains, where the autograd function of `fused` takes 6 and 8 with an objective.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from alignkit.kernels import rows
from alignkit.kernels.backend import engine
from alignkit.kernels.head import LogitTransform, Operands, compute_dtype, unwritten_gradients
from alignkit.kernels.linear_divergence.fused import gradients_of, values_of
from alignkit.kernels.linear_divergence.records import (
    DIFFERENTIABLE,
    Name,
    Request,
    labelled_rows,
    masked_columns,
    targets_of,
)

PACKAGE = str(__package__)


def compiled(
    student: Operands,
    teacher: Operands,
    labels: Tensor | None,
    request: Request,
    ignore_index: int | None,
    implementation: str,
) -> dict[str, Tensor]:
    """Compute the outputs of `request`, [N] each, zero or False where the label is ignored.

    Those in `request.differentiable` carry gradient. The objective is left to the caller.
    """
    values, hits = linear_divergence_op(
        *student[:3],
        *teacher[:3],
        labels,
        [*student.transform.as_numbers(), *teacher.transform.as_numbers(), request.temperature],
        request.tempered_entropy,
        ",".join(request.outputs),
        ",".join(request.differentiable),
        ignore_index,
        implementation,
    )
    numbers, flags = _split(request.outputs)
    found = dict(zip((*numbers, *flags), (*values.unbind(), *hits.unbind()), strict=True))
    return {
        name: value if name in request.differentiable else value.detach() for name, value in found.items()
    }


@torch.library.custom_op("alignkit::linear_divergence", mutates_args=())
def linear_divergence_op(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    labels: Tensor | None,
    factors: list[float],
    tempered_entropy: bool,
    outputs: str,
    differentiable: str,
    ignore_index: int | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Return the numbers [k, N] and the top-1 flags [j, N] of `outputs`, names that are separated by commas.

    `factors` are the numbers of both sides' transforms, then the temperature. The other options are those
    of `linear_divergence` and `records.Request`.
    """
    tensors = student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias
    options = factors, tempered_entropy, outputs, differentiable, ignore_index
    with _call(tensors, labels, *options) as (kept, sides, targets, request):
        found = values_of(sides, targets, request, engine(PACKAGE, implementation))
    numbers, flags = _split(request.outputs)
    values = torch.stack([kept.spread(found[name]) for name in numbers])
    if not flags:
        return values, values.new_empty(0, len(student_hidden), dtype=torch.bool)
    return values, torch.stack([kept.spread(found[name]) for name in flags])


@linear_divergence_op.register_fake
def _(student_hidden: Tensor, student_weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    numbers, flags = _split(tuple(others[7].split(",")))
    count, dtype = student_hidden.size(0), compute_dtype(student_weight)
    return (
        student_hidden.new_empty(len(numbers), count, dtype=dtype),
        student_hidden.new_empty(len(flags), count, dtype=torch.bool),
    )


@torch.library.custom_op("alignkit::linear_divergence_gradient", mutates_args=())
def gradient_op(
    upstream: Tensor,
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    labels: Tensor | None,
    needed: list[bool],
    factors: list[float],
    tempered_entropy: bool,
    outputs: str,
    differentiable: str,
    ignore_index: int | None,
    implementation: str,
) -> list[Tensor]:
    """Return the gradients to the first six tensors that are `needed`, from that of the op's numbers [k, N]."""
    tensors = student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias
    options = factors, tempered_entropy, outputs, differentiable, ignore_index
    with _call(tensors, labels, *options) as (kept, sides, targets, request):
        rows_of = dict(zip(_split(request.outputs)[0], upstream, strict=True))
        given = {name: kept.take(rows_of[name]).contiguous() for name in request.differentiable}
        found = gradients_of(sides, targets, request, engine(PACKAGE, implementation), needed, given)
    made: list[Tensor] = []
    for index, (tensor, gradient) in enumerate(zip(tensors, found, strict=True)):
        if needed[index] and tensor is not None:
            if gradient is None:
                made.append(torch.zeros_like(tensor))
            else:
                made.append(kept.spread(gradient) if index % 3 == 0 else gradient)
    return made


@gradient_op.register_fake
def _(upstream: Tensor, *others: Any) -> list[Tensor]:
    return unwritten_gradients(others[:6], others[7])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    needed = [bool(need) for need in ctx.needs_input_grad[:6]]
    found = iter(gradient_op(upstream, *ctx.saved_tensors, needed, *ctx.options))
    return *(next(found) if need else None for need in needed), *(None,) * (1 + len(ctx.options))


linear_divergence_op.register_autograd(_backward, setup_context=_setup)


@contextmanager
def _call(
    tensors: tuple[Any, ...],
    labels: Tensor | None,
    factors: list[float],
    tempered_entropy: bool,
    outputs: str,
    differentiable: str,
    ignore_index: int | None,
) -> Iterator[tuple[rows.Rows, dict[Name, Operands], Tensor, Request]]:
    """The selected rows, both sides' operands, the targets and the request of one call, without autocast."""
    hidden, weight = tensors[:2]
    kept = labelled_rows(labels, len(hidden), weight.size(0), ignore_index)
    sides: dict[Name, Operands] = {}
    for index, name in enumerate(DIFFERENTIABLE):
        transform = LogitTransform.of_numbers(*factors[3 * index : 3 * index + 3])
        own, matrix, bias = tensors[3 * index : 3 * index + 3]
        sides[name] = Operands(kept.take(own), matrix, bias, transform)
    request = Request(
        temperature=factors[-1],
        tempered_entropy=tempered_entropy,
        has_masked_columns=any(masked_columns(side) for side in sides.values()),
        outputs=tuple(outputs.split(",")),
        differentiable=tuple(filter(None, differentiable.split(","))),
        objective=None,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        yield kept, sides, targets_of(labels, kept, sides["student"].hidden), request


def _split(outputs: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the outputs that are numbers, and of those that are flags."""
    flags = tuple(name for name in outputs if name.endswith("top1"))
    return tuple(name for name in outputs if name not in flags), flags
