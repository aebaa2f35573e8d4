"""`linear_divergence` with all logits at once and autograd's gradients: short, slow, for tests and for reading."""

import torch
from torch import Tensor

from alignkit.kernels.divergence_rows import Plan
from alignkit.kernels.sides import Side, compute_dtype


def reference(student: Side, teacher: Side, labels: Tensor, plan: Plan) -> dict[str, Tensor]:
    """The values named in `plan.outputs`, [N] each, with gradient as the plan says."""
    at_one = [_logits(side) for side in (student, teacher)]
    log_q, log_p = ((x / plan.temperature).log_softmax(dim=1) for x in at_one)
    log_q1, log_p1 = (x.log_softmax(dim=1) for x in at_one)
    values = {
        "forward_kl": _kl(log_p.detach(), log_q),
        "reverse_kl": _kl(log_q, log_p.detach()),
        "teacher_reverse_kl": _kl(log_q.detach(), log_p),
        "student_entropy": _entropy(log_q if plan.tempered_entropy else log_q1),
        "teacher_entropy": _entropy(log_p if plan.tempered_entropy else log_p1),
    }
    if plan.jsd_beta is not None:
        values["jsd"] = _jsd(log_q, log_p.detach(), plan.jsd_beta)
    if plan.labelled:
        for name, log in (("student", log_q1), ("teacher", log_p1)):
            values[f"{name}_ce"] = -log.gather(1, labels[:, None]).squeeze(1)
    if plan.top1:
        for name, x in zip(("student", "teacher"), at_one, strict=True):
            values[f"{name}_top1"] = x.argmax(dim=1) == labels
    found = {n: values[n] if n in plan.carriers else values[n].detach() for n in plan.outputs}
    if plan.objective is None:
        return found
    return {n: x.detach() for n, x in found.items()} | {"loss": plan.objective(found)}


def _logits(side: Side) -> Tensor:
    dtype = compute_dtype(side.weight)
    x = side.hidden.to(dtype) @ side.weight.to(dtype).T
    x = (x if side.bias is None else x + side.bias.to(dtype)) * side.head.scale
    return x if side.head.softcap is None else side.head.softcap * torch.tanh(x / side.head.softcap)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each row; where a is 0 the term is 0."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a == 0, 0.0)).sum(dim=1)


def _entropy(log_a: Tensor) -> Tensor:
    a = log_a.exp()
    return -(a * log_a.masked_fill(a == 0, 0.0)).sum(dim=1)


def _jsd(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    mixture = beta * log_p.exp() + (1 - beta) * log_q.exp()
    mixture = mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()
    return beta * _kl(log_p, mixture) + (1 - beta) * _kl(log_q, mixture)
