"""Entropy-gap balanced distillation as a TRL trainer, after BD-KD (arXiv 2212.12965)."""

from dataclasses import dataclass, field, fields
from typing import Literal, cast

from torch import Tensor

from alignkit import checks
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.losses import BalancedLoss, balance
from alignkit.losses.bd_kd import GATES
from alignkit.trainers.distillation import (
    DistillationConfig,
    DistillationTrainer,
    operands,
    pair_output,
    token_metrics,
)
from alignkit.trainers.pair import PairOutput, Rows, Tokens


@dataclass(frozen=True, slots=True)
class BDKDObjective:
    """The sum over valid tokens of ce_weight CE + kd_weight balanced KL for the student, and likewise the teacher.

    The student's is `balance`'s; the teacher's, where it trains, ce_weight CE + kd_weight temperature^2 KL(q || p).
    Neither sends gradient into the other.
    """

    temperature: float = 1.0
    gate: Literal["hard", "soft"] = "hard"
    nu: float = 2.0
    kappa: float = 1.0
    tempered_entropy: bool = True
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    teacher_trains: bool = True

    def __post_init__(self) -> None:
        checks.positive("temperature", self.temperature)
        checks.one_of("gate", self.gate, GATES)
        checks.at_least("nu", self.nu, 1)
        for name in ("kappa", "ce_weight", "kd_weight"):
            checks.at_least(name, getattr(self, name), 0)

    def __call__(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        divergences = linear_divergence(
            labels=tokens.labels,
            temperature=self.temperature,
            tempered_entropy=self.tempered_entropy,
            top1=True,
            objective=self._of_tokens,
            **operands(student, teacher),
        )
        balanced = self._balance(divergences)
        gap = divergences.teacher_entropy - divergences.student_entropy
        metrics = {
            **token_metrics(divergences, tokens),
            "gate/share": tokens.per_sequence(gap > 0),
            "gate/forward_weight": tokens.per_sequence(balanced.forward_weight),
        }
        return pair_output(cast(Tensor, divergences.loss), metrics, student, teacher, tokens)

    def _of_tokens(self, divergences: Divergences) -> Tensor:
        balanced = self._balance(divergences)
        losses = self.ce_weight * cast(Tensor, divergences.student_ce) + self.kd_weight * balanced.student
        if self.teacher_trains:
            teacher_ce = cast(Tensor, divergences.teacher_ce)
            losses = losses + self.ce_weight * teacher_ce + self.kd_weight * balanced.teacher
        return losses

    def _balance(self, divergences: Divergences) -> BalancedLoss:
        return balance(
            divergences.forward_kl,
            divergences.reverse_kl,
            divergences.student_entropy,
            divergences.teacher_entropy,
            teacher_kl=divergences.teacher_reverse_kl,
            temperature=self.temperature,
            gate=self.gate,
            nu=self.nu,
            kappa=self.kappa,
        )


@dataclass
class BDKDConfig(DistillationConfig):
    """DistillationConfig plus the gate, the weights, and how the teacher trains. The values are our reading."""

    temperature: float = field(
        default=1.0,
        metadata={"help": "Softmax temperature of the KLs, > 0; they are multiplied by its square."},
    )
    gate: str = field(
        default="hard",
        metadata={"help": "How the entropy gap weighs the KLs: hard or soft; see losses.balance."},
    )
    nu: float = field(default=2.0, metadata={"help": "The favoured KL's weight under the hard gate, >= 1."})
    kappa: float = field(default=1.0, metadata={"help": "Steepness of the soft gate per nat, >= 0."})
    tempered_entropy: bool = field(
        default=True, metadata={"help": "Take the gate's entropies at the temperature; else at 1."}
    )
    ce_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy with the labels, of both models, >= 0."}
    )
    kd_weight: float = field(
        default=1.0, metadata={"help": "Weight of the balanced KLs, and of the teacher's reverse KL, >= 0."}
    )
    teacher_trains: bool = field(
        default=True, metadata={"help": "Train the teacher beside the student; else it is frozen."}
    )
    teacher_learning_rate: float | None = field(
        default=None, metadata={"help": "The teacher's learning rate; the student's unless given."}
    )
    save_teacher: bool = field(
        default=False,
        metadata={"help": "Save the trained teacher with the student, in its folder teacher/model."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective()  # refuses what is out of range
        if self.teacher_learning_rate is not None:
            checks.positive("teacher_learning_rate", self.teacher_learning_rate)
        given = [name for name in ("teacher_learning_rate", "save_teacher") if getattr(self, name)]
        if given and not self.teacher_trains:
            raise ValueError(f"{given[0]} is given, but the teacher does not train (teacher_trains)")

    def objective(self) -> BDKDObjective:
        """The loss by these fields."""
        return BDKDObjective(**{item.name: getattr(self, item.name) for item in fields(BDKDObjective)})


class BDKDTrainer(DistillationTrainer):
    """Distillation whose loss is `BDKDObjective`; the teacher trains beside the student, or is frozen."""

    _tag_names = ["trl", "bd-kd", "alignkit"]  # noqa: RUF012 - TRL's protocol

    def objective(self) -> BDKDObjective:
        """The loss by `args`."""
        config: BDKDConfig = self.args
        return config.objective()
