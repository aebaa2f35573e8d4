"""SinKD as a TRL trainer (arXiv 2402.17110): cross-entropy, a KL, and optimal transport between sets of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, cast

import torch
from torch import Tensor

from alignkit import checks
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.kernels.pairwise_l1 import pairwise_l1
from alignkit.kernels.sinkhorn import GRADIENTS
from alignkit.losses import SelfCosts, SinkhornLoss, transport_loss
from alignkit.losses.sinkd import REDUCTIONS
from alignkit.trainers.distillation import (
    DistillationConfig,
    DistillationTrainer,
    operands,
    pair_output,
    token_metrics,
)
from alignkit.trainers.pair import PairOutput, Rows, Tokens

MODES = ("token_set", "per_sequence")


@dataclass(frozen=True, slots=True)
class SinKDObjective:
    """The sum over valid tokens of ce_weight CE + kl_weight KL(p || q) + sinkhorn_weight transport of their set."""

    temperature: float = 2.0
    epsilon: float = 0.1
    iterations: int = 20
    sinkhorn_weight: float = 8e-4
    ce_weight: float = 1.0
    kl_weight: float = 0.1
    kl_temperature: float = 1.0
    mode: Literal["token_set", "per_sequence"] = "token_set"
    max_rows: int = 256
    reduction: Literal["sum", "mean"] = "sum"
    debiased: bool = False
    gradient: Literal["unrolled", "envelope"] = "unrolled"

    def __post_init__(self) -> None:
        for name in ("temperature", "epsilon", "kl_temperature"):
            checks.positive(name, getattr(self, name))
        for name in ("sinkhorn_weight", "ce_weight", "kl_weight"):
            checks.at_least(name, getattr(self, name), 0)
        for name in ("iterations", "max_rows"):
            checks.at_least(name, getattr(self, name), 1)
        checks.one_of("mode", self.mode, MODES)
        checks.one_of("reduction", self.reduction, REDUCTIONS)
        checks.one_of("gradient", self.gradient, GRADIENTS)

    def __call__(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        divergences = linear_divergence(
            labels=tokens.labels,
            temperature=self.kl_temperature,
            top1=True,
            objective=self._of_tokens,
            **operands(student, teacher),
        )
        losses = cast(Tensor, divergences.loss)
        metrics = token_metrics(divergences, tokens)
        if self.sinkhorn_weight:
            transported = self._transport(student, teacher, tokens)
            losses = losses + self.sinkhorn_weight * transported.pop("loss")
            metrics |= {f"transport/{name}": tokens.per_sequence(v) for name, v in transported.items()}
        return pair_output(losses, metrics, student, teacher, tokens)

    def _of_tokens(self, divergences: Divergences) -> Tensor:
        return self.ce_weight * cast(Tensor, divergences.student_ce) + self.kl_weight * divergences.forward_kl

    def _transport(self, student: Rows, teacher: Rows, tokens: Tokens) -> dict[str, Tensor]:
        """Of each token [N] what its set gives; where the set is sampled, the sample speaks for it."""
        parts = []
        for members in self._sets(tokens):
            chosen = members[_sample(len(members), self.max_rows, tokens.seed).to(members.device)]
            result = self._match(student.take(chosen), teacher.take(chosen))
            rows = max(len(chosen), 1) if self.reduction == "sum" else 1
            of_set = torch.stack([result.loss, result.loss / rows, result.residual])
            parts.append(of_set[:, None].expand(-1, len(members)))
        loss, cost, residual = torch.cat(parts, dim=1)
        return {"loss": loss, "cost": cost, "residual": residual}

    def _sets(self, tokens: Tokens) -> Sequence[Tensor]:
        """Indices of the tokens of each set; tokens come sequence by sequence."""
        everything = torch.arange(len(tokens.labels), device=tokens.labels.device)
        if self.mode == "token_set":
            return [everything]
        return everything.split(tokens.sequence.bincount(minlength=tokens.sequences).tolist())

    def _match(self, student: Rows, teacher: Rows) -> SinkhornLoss:
        def costs(left: Rows, right: Rows) -> Tensor:
            return pairwise_l1(temperature=self.temperature, **operands(left, right))

        own = SelfCosts(costs(student, student), costs(teacher, teacher)) if self.debiased else None
        return transport_loss(
            costs(student, teacher),
            own,
            epsilon=self.epsilon,
            iterations=self.iterations,
            reduction=self.reduction,
            gradient=self.gradient,
        )


def _sample(count: int, most: int, seed: int) -> Tensor:
    """At most `most` of `count` positions, ascending."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values


@dataclass
class SinKDConfig(DistillationConfig):
    """DistillationConfig plus the weights and the options of the transport.

    The defaults of `temperature`, `epsilon`, `iterations` and of the three weights are those of the authors'
    published code, the weights those of its T0 run.
    """

    temperature: float = field(
        default=2.0, metadata={"help": "Softmax temperature of the rows that are matched, > 0."}
    )
    epsilon: float = field(
        default=0.1, metadata={"help": "Entropic strength of the transport, > 0; costs are at most 2."}
    )
    iterations: int = field(default=20, metadata={"help": "Sinkhorn scalings of rows and columns, >= 1."})
    sinkhorn_weight: float = field(
        default=8e-4, metadata={"help": "Weight of the transport, >= 0, beside a mean cross-entropy."}
    )
    ce_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy with the labels, >= 0."}
    )
    kl_weight: float = field(
        default=0.1, metadata={"help": "Weight of KL(teacher || student) of each token, >= 0."}
    )
    kl_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of that KL, > 0; its square does not enter."}
    )
    mode: str = field(
        default="token_set",
        metadata={
            "help": "The set that is matched: token_set, a micro-batch's tokens; per_sequence, each answer's."
        },
    )
    max_rows: int = field(
        default=256, metadata={"help": "Tokens of a set that are matched, >= 1; of more, a sample is drawn."}
    )
    reduction: str = field(
        default="sum", metadata={"help": "sum, which grows with the rows of a set, or mean over them."}
    )
    debiased: bool = field(
        default=False,
        metadata={"help": "Subtract the transport of each side with itself, zero between equals."},
    )
    gradient: str = field(
        default="unrolled",
        metadata={"help": "unrolled through all iterations, or envelope: the plan held fixed."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective()  # refuses what is out of range

    def objective(self) -> SinKDObjective:
        """The loss by these fields."""
        return SinKDObjective(**{item.name: getattr(self, item.name) for item in fields(SinKDObjective)})


class SinKDTrainer(DistillationTrainer):
    """Distillation from a frozen teacher whose loss is `SinKDObjective`."""

    _tag_names = ["trl", "sinkd", "alignkit"]  # noqa: RUF012 - TRL's protocol

    def objective(self) -> SinKDObjective:
        """The loss by `args`."""
        config: SinKDConfig = self.args
        return config.objective()
