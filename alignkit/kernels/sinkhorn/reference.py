"""`sinkhorn` as the method writes it, with autograd's gradients: short, for tests and for reading."""

from torch import Tensor


def materialised(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The plan [..., n, n]: the matrix itself, scaled again and again."""
    log_plan = -cost / epsilon
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(dim=-1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(dim=-2, keepdim=True)
    return log_plan.exp()
