"""Divergences between two models' next-token distributions, computed from hidden states and heads in token chunks.

p = teacher, q = student, both softmax(logits / temperature); the equations are in `linear_divergence.torch`. One pass
over both heads gives all values. There are three ways to compute gradients:

- With an `objective`, the forward knows each row's gradient but for the upstream gradient of its loss. It makes one
  gradient per side, and those of heads that train. The backward scales them. A head's gradient cannot be scaled row
  by row: if the losses' upstream gradients differ, it is recomputed.
- With both heads frozen (LoRA), the forward computes the gradient of each differentiable output, [N, H] each. The
  backward adds them up with the upstream gradients as weights. The forward does not know these, since a loss's
  weights may depend on the values.
- Otherwise the backward recomputes each chunk's logits. Weight and bias gradients are summed in float32.

A multiply-add counts as two flops. With H the width of both models and k differentiable outputs, forward and backward
take

    values only                            4 N H V
    frozen heads, k gradients in the forward   (4 + 2 k) N H V     6 N H V with an `objective` over the student only
    frozen heads, recomputed               10 N H V                12 if both sides have gradients
    student's head trained                 12 N H V                16 if the teacher's trains too
    student's head trained, `objective`     8 N H V                12 if the teacher's trains too

Without an objective and with frozen heads the cheaper way is used.
"""

import os
from dataclasses import fields

# Not `import torch`: this package has a module `torch`, whose import would replace the name.
from torch import Tensor, autocast, compiler

from alignkit import arguments
from alignkit.kernels import rows
from alignkit.kernels.backend import VARIABLE, Implementation, choose, engine
from alignkit.kernels.head import LogitTransform, Operands, check_shapes, first_columns
from alignkit.kernels.linear_divergence.compiled import compiled
from alignkit.kernels.linear_divergence.fused import fused
from alignkit.kernels.linear_divergence.records import (
    DIFFERENTIABLE,
    Divergences,
    Name,
    Objective,
    Request,
    TokenDivergence,
    labelled_rows,
    masked_columns,
    targets_of,
)
from alignkit.kernels.linear_divergence.reference import materialised

__all__ = ["Divergences", "Objective", "TokenDivergence", "linear_divergence"]


def linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    temperature: float = 1.0,
    tempered_entropy: bool = True,
    top1: bool = False,
    divergence: TokenDivergence | None = None,
    objective: Objective | None = None,
    ignore_index: int | None = -100,
    implementation: Implementation | None = None,
) -> Divergences:
    """Compute divergences between the distributions of student and teacher, without making [N, V] logits.

    The student's logits are those of student_hidden [N, Hs] student_weight [Vs, Hs]^T, the teacher's likewise. Any
    float dtype: matmuls run in it, or in autocast's; sums in float32. Vocabularies of different padding share their
    first min(Vs, Vt) columns; the others are ignored. A bias of -inf on both sides removes a column. On one side
    only it makes a KL infinite, as the definition does. Rows whose label is `ignore_index` are removed before any
    work; None says that there are none. The soft cap is applied after the scale and before the temperature.
    `tempered_entropy=False` computes the entropies at temperature 1.

    With frozen heads each differentiable output costs one matmul. `objective` is a function from the Divergences of n
    rows to a loss [n], row by row. With it only `.loss` carries gradient, at the cost of one output. It is called for
    a few rows at a time.

    `divergence` adds an output of that name: any function of both distributions and their logarithms. It has no
    Triton kernel, so that all rows are computed in PyTorch, on a GPU too.

    Raises ValueError for shapes that do not match, labels outside the shared vocabulary, and options out of range.
    """
    arguments.positive("temperature", temperature)
    check_shapes(student_hidden, student_weight, student_bias, "student_")
    check_shapes(teacher_hidden, teacher_weight, teacher_bias, "teacher_")
    if len(student_hidden) != len(teacher_hidden):
        raise ValueError(
            f"student and teacher must have the same rows, found {len(student_hidden)} and {len(teacher_hidden)}"
        )
    vocabulary = min(student_weight.size(0), teacher_weight.size(0))
    name = _implementation(student_hidden, implementation, divergence)
    compiles = compiler.is_compiling() and divergence is None and name != "reference"
    # a compiled call selects its rows inside the op, whose outputs have the shapes of its inputs
    kept = (
        rows.Rows(None, len(student_hidden))
        if compiles
        else labelled_rows(labels, len(student_hidden), vocabulary, ignore_index)
    )
    of_student = LogitTransform(student_logit_scale, student_softcap)
    of_teacher = LogitTransform(teacher_logit_scale, teacher_softcap)
    student, teacher = (
        first_columns(operands, vocabulary)
        for operands in (
            Operands(kept.take(student_hidden), student_weight, student_bias, of_student),
            Operands(kept.take(teacher_hidden), teacher_weight, teacher_bias, of_teacher),
        )
    )
    trains: dict[Name, bool] = {"student": student.train, "teacher": teacher.train}
    outputs = _outputs(labelled=labels is not None, top1=top1, teacher_trains=trains["teacher"])
    outputs += () if divergence is None else ("divergence",)
    request = Request(
        temperature=temperature,
        tempered_entropy=tempered_entropy,
        has_masked_columns=not compiles and (masked_columns(student) or masked_columns(teacher)),
        outputs=outputs,
        differentiable=tuple(
            name
            for side, names in DIFFERENTIABLE.items()
            if trains[side]
            for name in names
            if name in outputs
        ),
        objective=None if objective is None else lambda values: objective(Divergences(**values)),
        divergence=divergence,
    )
    if compiles:
        values = compiled(student, teacher, labels, request, ignore_index, name)
        return _with_loss(Divergences(**values), objective, labels, ignore_index)
    targets = targets_of(labels, kept, student.hidden)
    with autocast(student.hidden.device.type, enabled=False):
        if name == "reference":
            values = materialised(student, teacher, targets, request)
        else:
            values = fused(student, teacher, targets, request, engine(__name__, name))
    return Divergences(**{name: kept.spread(value) for name, value in values.items()})


def _with_loss(
    found: Divergences, objective: Objective | None, labels: Tensor | None, ignore_index: int | None
) -> Divergences:
    """The result of a compiled call with the objective's losses, zero where the label is ignored.

    All gradient flows through the losses, if there is an objective.
    """
    if objective is None:
        return found
    loss = objective(found)
    if loss.shape != found.forward_kl.shape:
        raise ValueError(
            f"the objective must return one loss per row, shape {list(found.forward_kl.shape)}, "
            f"found {list(loss.shape)}"
        )
    if labels is not None and ignore_index is not None:
        loss = loss.masked_fill(labels == ignore_index, 0.0)
    detached = {
        field.name: value.detach()
        for field in fields(found)
        if (value := getattr(found, field.name)) is not None
    }
    return Divergences(**detached | {"loss": loss})


def _implementation(
    hidden: Tensor, forced: Implementation | None, divergence: TokenDivergence | None
) -> Implementation:
    """The implementation to run: with a divergence of the caller's PyTorch, unless another is forced."""
    if divergence is not None and forced is None and not os.environ.get(VARIABLE):
        return "torch"
    name = choose(hidden, forced)
    if divergence is not None and name == "triton":
        raise ValueError(
            "linear_divergence has no Triton kernel for a `divergence`: expected torch or reference as "
            f"implementation or {VARIABLE}, found triton"
        )
    return name


def _outputs(*, labelled: bool, top1: bool, teacher_trains: bool) -> tuple[str, ...]:
    if top1 and not labelled:
        raise ValueError("top1 needs labels to compare with, found labels=None")
    names = ["forward_kl", "reverse_kl", "student_entropy", "teacher_entropy"]
    names += ["teacher_reverse_kl"] if teacher_trains else []
    names += ["student_ce", "teacher_ce"] if labelled else []
    return (*names, "student_top1", "teacher_top1") if top1 else tuple(names)
