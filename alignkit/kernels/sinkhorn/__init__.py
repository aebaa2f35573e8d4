"""Entropic optimal transport with marginals of ones, in the log domain, with exact gradients from the potentials.

With scores S = -cost / epsilon, g_0 = 0 and t = 1 .. T:

    f_t = -logsumexp_j(S_ij + g_t-1,j)      rows to sum one
    g_t = -logsumexp_i(S_ij + f_t,i)        columns to sum one
    P = exp(S + f_T + g_T)

The gradient of logsumexp is a softmax, which can be recomputed from the potentials. Let A_t = exp(S + f_t + g_t),
whose columns sum to one, and B_t = exp(S + f_t + g_t-1), whose rows sum to one. From t = T down, the chain rule reads

    dS -= A_t dg_t    df_t -= A_t dg_t (summed over j)    dS -= df_t B_t    dg_t-1 = -df_t B_t (summed over i)

It starts from dS = P dP, with df_T and dg_T the row and column sums of dS. So only T n numbers per side are kept,
instead of T matrices.
"""

# Not `import torch`: this package has a module `torch`, whose import would replace the name.
from torch import Tensor, compiler, float32, promote_types

from alignkit import arguments
from alignkit.kernels.backend import Implementation, choose, engine
from alignkit.kernels.sinkhorn.compiled import compiled
from alignkit.kernels.sinkhorn.fused import fused
from alignkit.kernels.sinkhorn.records import GRADIENTS, Gradient, Plan
from alignkit.kernels.sinkhorn.reference import materialised

__all__ = ["GRADIENTS", "Gradient", "Plan", "sinkhorn"]


def sinkhorn(
    cost: Tensor,
    *,
    epsilon: float,
    iterations: int,
    gradient: Gradient = "unrolled",
    implementation: Implementation | None = None,
) -> Plan:
    """Compute the Sinkhorn plan P of `cost` [..., n, n]. Leading dimensions are independent problems.

    P starts as exp(-cost / epsilon). Each of the `iterations` scales its rows to sum to one, then its columns.

    `gradient="unrolled"` is exact through the cost and every iteration. "envelope" treats P as a constant, so that
    `.cost` has gradient P; that is exact for sum P cost + epsilon sum P ln P at its optimum. n = 0 gives a
    differentiable zero. Raises ValueError for options out of range and for a cost that is not square, since its rows
    and columns cannot all sum to one.
    """
    _check(cost, epsilon, iterations, gradient)
    cost = cost.to(promote_types(cost.dtype, float32))
    if not cost.numel():
        zero = cost.sum(dim=(-2, -1))
        return Plan(cost.detach(), zero.detach(), zero)
    name = choose(cost, implementation)
    fixed = cost.detach() if gradient == "envelope" else cost
    if name == "reference":
        plan = materialised(fixed, epsilon, iterations)
    elif compiler.is_compiling():
        plan = compiled(fixed, epsilon, iterations, name)
    else:
        plan = fused(fixed, epsilon, iterations, engine(__name__, name))
    residual = (plan.detach().sum(dim=-1) - 1).abs().amax(dim=-1)
    return Plan(plan, residual, (plan * cost).sum(dim=(-2, -1)))


def _check(cost: Tensor, epsilon: float, iterations: int, gradient: str) -> None:
    if cost.dim() < 2 or cost.size(-1) != cost.size(-2):
        raise ValueError(f"cost must be [..., n, n], found shape {list(cost.shape)}")
    arguments.positive("epsilon", epsilon)
    if iterations < 1:
        raise ValueError(f"iterations must be >= 1, found {iterations}")
    arguments.one_of("gradient", gradient, GRADIENTS)
