"""A short, slow reference of `linear_divergence` for tests: it makes all logits and uses autograd."""

from torch import Tensor

from alignkit.kernels.head import Operands, compute_dtype
from alignkit.kernels.linear_divergence.records import Request


def materialised(student: Operands, teacher: Operands, labels: Tensor, request: Request) -> dict[str, Tensor]:
    """Compute the values in `request.returned`, [N] each, with the gradients of the request."""
    at_one = [_logits(side) for side in (student, teacher)]
    log_q, log_p = ((x / request.temperature).log_softmax(dim=1) for x in at_one)
    log_q1, log_p1 = (x.log_softmax(dim=1) for x in at_one)
    values = {
        "forward_kl": _kl(log_p.detach(), log_q),
        "reverse_kl": _kl(log_q, log_p.detach()),
        "teacher_reverse_kl": _kl(log_q.detach(), log_p),
        "student_entropy": _entropy(log_q if request.tempered_entropy else log_q1),
        "teacher_entropy": _entropy(log_p if request.tempered_entropy else log_p1),
    }
    if request.divergence is not None:
        fixed = log_p.detach()
        values["divergence"] = request.divergence.value(fixed.exp(), log_q.exp(), fixed, log_q)
    if request.labelled:
        for name, log in (("student", log_q1), ("teacher", log_p1)):
            values[f"{name}_ce"] = -log.gather(1, labels[:, None]).squeeze(1)
    if request.top1:
        for name, x in zip(("student", "teacher"), at_one, strict=True):
            values[f"{name}_top1"] = x.argmax(dim=1) == labels
    found = {n: values[n] if n in request.differentiable else values[n].detach() for n in request.outputs}
    if request.objective is None:
        return found
    return {n: x.detach() for n, x in found.items()} | {"loss": request.objective(found)}


def _logits(side: Operands) -> Tensor:
    dtype = compute_dtype(side.weight)
    return side.transform(side.hidden.to(dtype) @ side.weight.to(dtype).T, side.bias)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each row. Where a is 0 the term is 0."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a == 0, 0.0)).sum(dim=1)


def _entropy(log_a: Tensor) -> Tensor:
    a = log_a.exp()
    return -(a * log_a.masked_fill(a == 0, 0.0)).sum(dim=1)
