"""SinKD: distillation from a frozen teacher by optimal transport, added to cross-entropy and a KL."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from alignkit.kernels import costs
from alignkit.kernels.costs import NO_HEAD, HeadCost
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.kernels.pairwise_l1 import pairwise_l1
from alignkit.kernels.plans import Gradient, KSparse, NewtonSparse, Sinkhorn, Solver
from alignkit.losses import SelfCosts, SinkhornLoss, transport_loss
from alignkit.losses.distillation import PairOutput, Rows, Tokens, operands, token_metrics
from alignkit.losses.sinkd import Reduction
from alignkit.methods.distillation import DistillMethod, Temperature, Weight
from alignkit.methods.work import Batch

Mode = Literal["token_set", "per_sequence"]
SolverName = Literal["sinkhorn", "newton_sparse", "k_sparse"]
GRADIENTS: Mapping[SolverName, tuple[Gradient, ...]] = {
    "sinkhorn": ("unrolled", "envelope", "implicit"),
    "newton_sparse": ("implicit", "envelope"),
    "k_sparse": ("envelope",),
}
"""Solver -> its gradients, the default first."""
Epsilon = Annotated[float, Field(gt=0, le=100)]
Iterations = Annotated[int, Field(ge=1, le=10_000)]
SEEN = 1e-6
"""Share of a token from which an entry of the plan counts as one in the metrics."""
MaxRows = Annotated[int, Field(ge=1, le=65_536)]


class SinKD(DistillMethod):
    """Distillation by a Sinkhorn distance between sets of tokens, added to the cross-entropy and a KL."""

    type: Literal["sinkd"] = "sinkd"
    paper: ClassVar[str] = "2402.17110"
    micro_batch_matters: ClassVar[bool] = True

    temperature: Temperature = Field(
        2.0, description="softmax temperature of the distributions in the transport"
    )
    epsilon: Epsilon = Field(
        0.1, description="entropic regularisation of the transport, whose costs are at most 2"
    )
    solver: SolverName = Field(
        "sinkhorn",
        description="sinkhorn: `iterations` of Sinkhorn; newton_sparse: the converged plan; k_sparse: a plan with at "
        "most `k` entries a column",
    )
    iterations: Iterations = Field(20, description="Sinkhorn iterations, each over rows and columns")
    density: Annotated[int, Field(ge=1, le=65_536)] = Field(
        15, description="newton_sparse: entries a row of the plan that the Hessian keeps"
    )
    tolerance: Annotated[float, Field(gt=0, le=0.1)] = Field(
        1e-8, description="newton_sparse: error of the marginals at which it stops"
    )
    k: Annotated[int, Field(ge=1, le=65_536)] = Field(
        4, description="k_sparse: student tokens that a teacher token may be matched with, at most"
    )
    gamma: Annotated[float, Field(gt=0, le=100)] = Field(
        0.1, description="k_sparse: quadratic regularisation, in place of epsilon"
    )
    pairing_weight: Weight = Field(
        0.0,
        description="weight, inside the transport loss, of each student token's distance from its own teacher's",
    )
    sinkhorn_weight: Weight = Field(8e-4, description="weight of the transport loss")
    ce_weight: Weight = Field(1.0, description="weight of the cross-entropy with the labels")
    kl_weight: Weight = Field(0.1, description="weight of KL(teacher || student) per token")
    kl_temperature: Temperature = Field(
        1.0, description="softmax temperature of that KL, which is not multiplied by its square"
    )
    mode: Mode = Field(
        "token_set", description="match all tokens of a micro-batch, or per_sequence those of each answer"
    )
    max_rows: MaxRows = Field(
        256, description="tokens of a set that are matched; a random sample of a larger set"
    )
    reduction: Reduction = Field(
        "sum", description="sum, which grows with the size of the set, or mean over its tokens"
    )
    debiased: bool = Field(False, description="subtract half of each side's transport cost to itself")
    gradient: Gradient | None = Field(
        None,
        description="unrolled: through all iterations, sinkhorn's default; envelope: with the plan held fixed, "
        "k_sparse's; implicit: exact at the optimum, newton_sparse's",
    )

    @model_validator(mode="after")
    def _gradient_of_the_solver(self) -> Self:
        """Refuse a gradient that the solver lacks."""
        possible = GRADIENTS[self.solver]
        if self.gradient is not None and self.gradient not in possible:
            expected = " or ".join(possible)
            raise ValueError(
                f"gradient: expected {expected} with solver {self.solver}, found {self.gradient}"
            )
        return self

    @property
    def plan_gradient(self) -> Gradient:
        """The gradient that is given, or the solver's default."""
        return self.gradient or GRADIENTS[self.solver][0]

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        """Return the sum over tokens of ce_weight CE + kl_weight KL(p || q) + sinkhorn_weight transport loss.

        A token's transport loss is `losses.transport_loss` of its set (after arXiv 2402.17110).
        """
        found = linear_divergence(
            labels=tokens.labels,
            temperature=self.kl_temperature,
            top1=True,
            objective=self._of_tokens,
            **operands(student, teacher),
        )
        losses, metrics = cast(Tensor, found.loss), token_metrics(found)
        if self.sinkhorn_weight:
            loss, *measured = self._transport(student, teacher, tokens)
            losses = losses + self.sinkhorn_weight * loss
            metrics |= zip(self._measures(), measured, strict=True)
        return PairOutput.of(tokens, losses, metrics)

    def _of_tokens(self, found: Divergences) -> Tensor:
        return self.ce_weight * cast(Tensor, found.student_ce) + self.kl_weight * found.forward_kl

    def _measures(self) -> dict[str, Callable[[SinkhornLoss, int], Tensor | float]]:
        """Metrics of a set's transport, as functions of its result and the rows that its sums are over."""
        found: dict[str, Callable[[SinkhornLoss, int], Tensor | float]] = {
            "transport/cost": lambda result, rows: result.cost / rows,
            "transport/residual": lambda result, _: result.residual,
        }
        if self.solver != "sinkhorn":
            found["transport/steps"] = lambda result, _: float(result.steps)
            found["transport/nonzeros"] = lambda result, _: (
                (result.plan > SEEN).sum() / max(len(result.plan), 1)
            )
        if self.pairing_weight:
            found["transport/gap"] = lambda result, rows: result.gap / rows
        return found

    def _transport(self, student: Rows, teacher: Rows, tokens: Tokens) -> Tensor:
        """[1 + measures, N]: loss and measures of each token's set, or of a sample of a large set."""
        parts = []
        for members in self._sets(tokens):
            chosen = members[_sample(len(members), self.max_rows, tokens.seed).to(members.device)]
            result = self._match(student.take(chosen), teacher.take(chosen))
            rows = max(len(chosen), 1) if self.reduction == "sum" else 1
            measured = (measure(result, rows) for measure in self._measures().values())
            of_set = torch.stack(
                [result.loss, *(torch.as_tensor(value).to(result.loss) for value in measured)]
            )
            parts.append(of_set[:, None].expand(-1, len(members)))
        return torch.cat(parts, dim=1)

    def _sets(self, tokens: Tokens) -> Sequence[Tensor]:
        """Indices of the tokens of each set. Expects the tokens in the order of their sequences."""
        everything = torch.arange(len(tokens.labels), device=tokens.labels.device)
        if self.mode == "token_set":
            return [everything]
        return everything.split(tokens.sequence.bincount(minlength=tokens.sequences).tolist())

    def _match(self, student: Rows, teacher: Rows) -> SinkhornLoss:
        def distances(left: Rows, right: Rows) -> Tensor:
            return pairwise_l1(temperature=self.temperature, **operands(left, right))

        own = SelfCosts(distances(student, student), distances(teacher, teacher)) if self.debiased else None
        return transport_loss(
            distances(student, teacher),
            own,
            reduction=self.reduction,
            solver=SOLVERS[self.solver](self),
            pairing_weight=self.pairing_weight,
        )

    def further_heads(self, batch: Batch) -> HeadCost:
        """Return the cost of the transport between the rows of both models."""
        if not self.sinkhorn_weight:
            return NO_HEAD
        sets, tokens = {
            "token_set": (1, batch.tokens(batch.rows)),
            "per_sequence": (batch.rows, batch.tokens(1)),
        }[self.mode]
        sizes = batch.heads["policy"], batch.heads["teacher"]
        solver = SOLVERS[self.solver](self)
        return costs.transport(
            min(tokens, self.max_rows), sets, *sizes, vectors=solver.vectors, matrices=solver.matrices
        )


SOLVERS: Mapping[SolverName, Callable[[SinKD], Solver]] = {
    "sinkhorn": lambda own: Sinkhorn(own.epsilon, own.iterations, own.plan_gradient),
    "newton_sparse": lambda own: NewtonSparse(own.epsilon, own.density, own.tolerance, own.plan_gradient),
    "k_sparse": lambda own: KSparse(own.k, own.gamma),
}
"""The solver that a method's options describe, by name."""


def _sample(count: int, most: int, seed: int) -> Tensor:
    """Draw at most `most` of `count` positions, in ascending order."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values
