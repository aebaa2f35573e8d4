"""Solvers of square optimal transport with marginals of ones: frozen dataclasses that map costs to a `Plan`.

`Sinkhorn` makes a fixed number of iterations. `NewtonSparse` converges to the same entropic plan. `KSparse` finds a
plan with at most k entries a column, under a quadratic regularisation. Each is called with costs [..., n, n], whose
leading dimensions are independent problems. n = 0 gives a differentiable zero. Raises ValueError for costs that are
not square.
"""

from alignkit.kernels.plans.base import Gradient, Solver
from alignkit.kernels.plans.k_sparse import KSparse
from alignkit.kernels.plans.newton_sparse import NewtonSparse
from alignkit.kernels.plans.sinkhorn import Sinkhorn
from alignkit.kernels.sinkhorn import Plan

__all__ = ["Gradient", "KSparse", "NewtonSparse", "Plan", "Sinkhorn", "Solver"]
