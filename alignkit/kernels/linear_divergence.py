"""Divergences of two models' next-token distributions from their hidden states and heads, in token chunks.

p = teacher, q = student, both softmax(logits / temperature); the equations are in `divergence_rows`. One pass over
both heads gives every value. Two ways to the gradients:

- Both heads frozen (LoRA): the gradient of each output that carries one is made in the forward, [N, H] each, and the
  backward only adds them up, weighted by what comes from above. What comes from above is not known in the forward,
  since a loss's weights may depend on the values; with an `objective` it is, and one gradient a side is enough.
- Else the backward makes each chunk's logits again; weight and bias gradients are added up in float32.

Multiply-adds count two. With H the width of both models and k outputs that carry gradient, forward and backward take

    values only                            4 N H V
    frozen heads, k gradients in the forward   (4 + 2 k) N H V     6 N H V with an `objective` over the student only
    frozen heads, recomputed               10 N H V                12 where both sides have gradients
    student's head trained                 12 N H V                16 where the teacher's trains as well

and the cheaper one is taken where the heads are frozen.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit import checks
from alignkit.kernels.backend import Implementation, choose
from alignkit.kernels.divergence_chunks import fused
from alignkit.kernels.divergence_reference import reference
from alignkit.kernels.divergence_rows import SIDES, Name, Plan, TorchRows
from alignkit.kernels.heads import Head, autocast
from alignkit.kernels.sides import Side


@dataclass(frozen=True, slots=True)
class Divergences:
    """What `linear_divergence` returns: [N] each in nats, float32 (float64 for float64 input), 0 or False where the
    label is ignored. The outputs of one side never send gradient to the other."""

    forward_kl: Tensor
    """KL(p || q); gradient to the student only."""
    reverse_kl: Tensor
    """KL(q || p); gradient to the student only."""
    student_entropy: Tensor
    """H(q); gradient to the student only, where asked for."""
    teacher_entropy: Tensor
    """H(p); gradient to the teacher only, where asked for."""
    student_ce: Tensor | None = None
    """-log q(label) at temperature 1; gradient to the student only. None without labels, as `teacher_ce`."""
    teacher_ce: Tensor | None = None
    """-log p(label) at temperature 1; gradient to the teacher only."""
    teacher_reverse_kl: Tensor | None = None
    """KL(q || p) once more, with gradient to the teacher only; None where the teacher requires none."""
    jsd: Tensor | None = None
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, TRL's; beta 0 is forward, 1 reverse KL.
    Gradient to the student only. None unless asked for."""
    student_top1: Tensor | None = None
    """bool, whether the label has the student's largest logit; None unless asked for."""
    teacher_top1: Tensor | None = None
    """bool, as the student's."""
    loss: Tensor | None = None
    """What the `objective` made of the others, with all their gradients; None without one."""


Objective = Callable[[Divergences], Tensor]


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
    jsd_beta: float | None = None,
    top1: bool = False,
    gradients: Collection[str] | None = None,
    objective: Objective | None = None,
    ignore_index: int = -100,
    implementation: Implementation | None = None,
) -> Divergences:
    """Divergences of student_hidden [N, Hs] student_weight [Vs, Hs]^T and the teacher's alike, without [N, V] logits.

    Any float dtype (products run in it, or in autocast's; sums in float32). Vocabularies that differ by padding
    share their first min(Vs, Vt) columns; the others count for nothing. -inf in both biases removes a column, in one
    it makes a KL infinite, as it is. Rows whose label is `ignore_index` are removed before any work. The soft cap
    is applied after the scale and before the temperature. `tempered_entropy=False` takes the entropies at
    temperature 1.

    `gradients` names the outputs that carry gradient, all but the entropies unless given: with frozen heads each
    costs a product, so name no more than the loss needs. `objective` makes a loss [n] of n rows' Divergences, row by
    row; then `.loss` alone carries gradient, at the cost of one output. It is called for a few rows at a time.

    Raises ValueError for shapes that do not fit, labels outside the shared vocabulary, options out of range, and
    names in `gradients` that are not produced.
    """
    checks.positive("temperature", temperature)
    vocabulary = _shared_vocabulary(student_hidden, student_weight, teacher_hidden, teacher_weight)
    keep = _kept(labels, student_hidden, vocabulary, ignore_index)
    student, teacher = (
        _side(hidden, weight, bias, head, keep, vocabulary)
        for hidden, weight, bias, head in (
            (student_hidden, student_weight, student_bias, Head(student_logit_scale, student_softcap)),
            (teacher_hidden, teacher_weight, teacher_bias, Head(teacher_logit_scale, teacher_softcap)),
        )
    )
    edge = _jsd_edge(jsd_beta)
    produced = _outputs(labelled=labels is not None, top1=top1, mixture=edge is None and jsd_beta is not None)
    trains: dict[Name, bool] = {"student": _trains(student), "teacher": _trains(teacher)}
    plan = Plan(
        temperature=temperature,
        tempered_entropy=tempered_entropy,
        jsd_beta=jsd_beta if edge is None else None,
        holes=_holes(student) or _holes(teacher),
        outputs=produced if trains["teacher"] else tuple(n for n in produced if n != "teacher_reverse_kl"),
        carriers=_carriers(gradients, produced, edge, trains),
        objective=None if objective is None else lambda values: objective(_collect(values, edge)),
    )
    targets = (
        student.hidden.new_zeros(len(student.hidden), dtype=torch.long) if labels is None else labels[keep]
    )
    run = _IMPLEMENTATIONS[choose(student.weight, implementation)]
    with torch.autocast(student.hidden.device.type, enabled=False):
        values = run(student, teacher, targets, plan)
    return _collect({name: _spread(value, keep) for name, value in values.items()}, edge)


def _torch(student: Side, teacher: Side, labels: Tensor, plan: Plan) -> dict[str, Tensor]:
    return fused(student, teacher, labels, plan, TorchRows)


def _triton(student: Side, teacher: Side, labels: Tensor, plan: Plan) -> dict[str, Tensor]:
    from alignkit.kernels.triton.linear_divergence import TritonRows

    return fused(student, teacher, labels, plan, TritonRows)


_IMPLEMENTATIONS: dict[str, Callable[[Side, Side, Tensor, Plan], dict[str, Tensor]]] = {
    "torch": _torch,
    "triton": _triton,
    "reference": reference,
}


def _shared_vocabulary(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> int:
    for name, hidden, weight in (
        ("student", student_hidden, student_weight),
        ("teacher", teacher_hidden, teacher_weight),
    ):
        if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1):
            raise ValueError(
                f"expected {name}_hidden [N, H] and {name}_weight [V, H], "
                f"found {list(hidden.shape)} and {list(weight.shape)}"
            )
    if student_hidden.size(0) != teacher_hidden.size(0):
        raise ValueError(
            f"student and teacher must have the same rows, found {len(student_hidden)} and {len(teacher_hidden)}"
        )
    return min(student_weight.size(0), teacher_weight.size(0))


def _kept(labels: Tensor | None, hidden: Tensor, vocabulary: int, ignore_index: int) -> Tensor | slice:
    """Which rows count: all, where no label is ignored."""
    if labels is None:
        return slice(None)
    checks.shaped("labels", labels, (hidden.size(0),))
    keep = labels != ignore_index
    wrong = labels[keep & ((labels < 0) | (labels >= vocabulary))]
    if wrong.numel():
        raise ValueError(f"labels must be below the shared vocabulary of {vocabulary}, found {int(wrong[0])}")
    return slice(None) if bool(keep.all()) else keep


def _side(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, keep: Tensor | slice, vocabulary: int
) -> Side:
    if bias is not None:
        checks.shaped("bias", bias, (weight.size(0),))
    if weight.size(0) > vocabulary:  # else no slice: its backward would copy the gradient
        weight, bias = weight[:vocabulary], None if bias is None else bias[:vocabulary]
    return Side(*autocast(hidden[keep], weight), bias, head)


def _spread(values: Tensor, keep: Tensor | slice) -> Tensor:
    """[n] -> [N], zero or False in the rows that do not count."""
    return values if isinstance(keep, slice) else values.new_zeros(keep.shape).masked_scatter(keep, values)


def _holes(side: Side) -> bool:
    return side.bias is not None and bool(side.bias.isneginf().any())


def _trains(side: Side) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in side[:3])


def _jsd_edge(beta: float | None) -> str | None:
    """At the ends of beta TRL's generalised JSD is one of the KLs, where its formula tends to 0."""
    if beta is not None and not 0 <= beta <= 1:
        raise ValueError(f"jsd_beta must be between 0 and 1, found {beta}")
    return None if beta is None else {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta)


def _outputs(*, labelled: bool, top1: bool, mixture: bool) -> tuple[str, ...]:
    if top1 and not labelled:
        raise ValueError("top1 compares with labels, found labels=None")
    produced = ["forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "teacher_reverse_kl"]
    produced += ["student_ce", "teacher_ce"] if labelled else []
    produced += ["student_top1", "teacher_top1"] if top1 else []
    return (*produced, "jsd") if mixture else tuple(produced)


def _carriers(
    gradients: Collection[str] | None, produced: tuple[str, ...], edge: str | None, trains: dict[Name, bool]
) -> tuple[str, ...]:
    """The outputs that carry gradient, as far as their side requires it."""
    able = {name for names in SIDES.values() for name in names} & {*produced, *(["jsd"] if edge else [])}
    wanted = able - {"student_entropy", "teacher_entropy"} if gradients is None else set(gradients)
    if wanted - able:
        raise ValueError(
            f"gradients must name outputs among {', '.join(sorted(able))}, found {', '.join(sorted(wanted - able))}"
        )
    wanted |= {edge} if edge and "jsd" in wanted else set()
    return tuple(
        n for side, names in SIDES.items() if trains[side] for n in names if n in wanted and n in produced
    )


def _collect(values: Mapping[str, Tensor], edge: str | None) -> Divergences:
    return Divergences(**values) if edge is None else Divergences(**values, jsd=values[edge])
