"""Sinkhorn's iterations as a solver, over the op `alignkit.kernels.sinkhorn`."""

from dataclasses import dataclass

from torch import Tensor

from alignkit import arguments
from alignkit.kernels.plans.base import Gradient, Solver, entropy
from alignkit.kernels.plans.implicit import implicit_cost
from alignkit.kernels.sinkhorn import Plan, sinkhorn


@dataclass(frozen=True)
class Sinkhorn(Solver):
    """A fixed number of Sinkhorn iterations for R(P) = epsilon sum P ln P. Their plan's rows may still be off.

    `gradient`: "unrolled" and "envelope" are those of `alignkit.kernels.sinkhorn`. "implicit" is the gradient at the
    optimum, so it needs a converged plan. Raises ValueError for options out of range.
    """

    epsilon: float = 0.1
    iterations: int = 20
    gradient: Gradient = "unrolled"

    def __post_init__(self) -> None:
        """Check the options."""
        arguments.positive("epsilon", self.epsilon)
        arguments.one_of("gradient", self.gradient, ("unrolled", "envelope", "implicit"))
        if self.iterations < 1:
            raise ValueError(f"iterations must be >= 1, found {self.iterations}")

    @property
    def vectors(self) -> int:
        """Number of [n] float32 vectors kept for the backward: the potentials of every iteration."""
        return 2 * self.iterations

    def __call__(self, cost: Tensor) -> Plan:
        """Compute the plan of the costs [..., n, n]."""
        if self.gradient != "implicit":
            return sinkhorn(cost, epsilon=self.epsilon, iterations=self.iterations, gradient=self.gradient)
        found = sinkhorn(cost, epsilon=self.epsilon, iterations=self.iterations, gradient="envelope")
        if not cost.numel():
            return found
        exact = implicit_cost(cost.to(found.plan.dtype), found.plan, self.epsilon)
        return Plan(found.plan, found.residual, exact)

    def regularisation(self, plan: Tensor) -> Tensor:
        """Compute epsilon sum P ln P, [...]."""
        return entropy(plan, self.epsilon)
