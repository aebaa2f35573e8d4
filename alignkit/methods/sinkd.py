"""SinKD: distillation from a frozen teacher by optimal transport, added to cross-entropy and a KL."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from alignkit.kernels import costs
from alignkit.kernels.costs import NO_HEAD, HeadCost
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.kernels.pairwise_l1 import pairwise_l1
from alignkit.kernels.sinkhorn import Gradient
from alignkit.losses import SelfCosts, SinkhornLoss, transport_loss
from alignkit.losses.distillation import PairOutput, Rows, Tokens, operands, token_metrics
from alignkit.losses.sinkd import Reduction
from alignkit.methods.distillation import DistillMethod, Temperature, Weight
from alignkit.methods.work import Batch

Mode = Literal["token_set", "per_sequence"]
Epsilon = Annotated[float, Field(gt=0, le=100)]
Iterations = Annotated[int, Field(ge=1, le=10_000)]
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
    iterations: Iterations = Field(20, description="Sinkhorn iterations, each over rows and columns")
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
    gradient: Gradient = Field(
        "unrolled", description="unrolled: through all iterations; envelope: with the plan held fixed"
    )

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
            metrics |= zip(("transport/cost", "transport/residual"), measured, strict=True)
        return PairOutput.of(tokens, losses, metrics)

    def _of_tokens(self, found: Divergences) -> Tensor:
        return self.ce_weight * cast(Tensor, found.student_ce) + self.kl_weight * found.forward_kl

    def _transport(self, student: Rows, teacher: Rows, tokens: Tokens) -> Tensor:
        """[3, N]: loss, cost per row and residual of each token's set, or of a sample of a large set."""
        parts = []
        for members in self._sets(tokens):
            chosen = members[_sample(len(members), self.max_rows, tokens.seed).to(members.device)]
            result = self._match(student.take(chosen), teacher.take(chosen))
            rows = max(len(chosen), 1) if self.reduction == "sum" else 1
            of_set = torch.stack([result.loss, result.loss / rows, result.residual])
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
            epsilon=self.epsilon,
            iterations=self.iterations,
            reduction=self.reduction,
            gradient=self.gradient,
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
        return costs.transport(min(tokens, self.max_rows), sets, *sizes, iterations=self.iterations)


def _sample(count: int, most: int, seed: int) -> Tensor:
    """Draw at most `most` of `count` positions, in ascending order."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values
