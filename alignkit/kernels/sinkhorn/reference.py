"""A short reference of `sinkhorn` for tests, as the method is written, with autograd."""

from torch import Tensor


def materialised(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Compute the plan [..., n, n] by scaling the matrix itself."""
    log_plan = -cost / epsilon
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(dim=-1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(dim=-2, keepdim=True)
    return log_plan.exp()
