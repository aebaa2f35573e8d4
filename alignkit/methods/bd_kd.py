"""BD-KD: distillation balanced by the entropy gap, with a teacher that trains beside the student or is frozen."""

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from alignkit.adapter_sections import LoraSection
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.losses import BalancedLoss, balance
from alignkit.losses.bd_kd import Gate
from alignkit.losses.distillation import PairOutput, Rows, Tokens, operands, token_metrics
from alignkit.methods.distillation import DistillMethod, TeacherTraining, Temperature, Weight
from alignkit.options import RECIPES_ONLY, GivenAs, JobContext

Nu = Annotated[float, Field(ge=1, le=1e6)]
Kappa = Annotated[float, Field(ge=0, le=1e6)]


def _adapters(rank: int | None, context: JobContext) -> dict[str, Any] | None:
    """The `teacher_lora` section of a job with this teacher rank; None for a frozen teacher without a rank."""
    if rank is None and not context.hyperparameters["teacher_trains"]:
        return None
    rank = rank or context.hyperparameters["lora_rank"]
    return {"r": rank, "alpha": 2.0 * rank}


TEACHER_LORA = GivenAs(
    "teacher_lora_rank",
    Annotated[int, Field(ge=1, le=1024)] | None,
    _adapters,
    default=None,
    description="rank of the teacher's LoRA adapters; default: lora_rank",
)
TEACHER_RATE = GivenAs(
    "teacher_learning_rate_multiplier",
    Annotated[float, Field(gt=0, le=1000)] | None,
    lambda multiplier, context: None if multiplier is None else multiplier * context.learning_rate,
    default=None,
    description="factor on the method's learning rate for the teacher; default: learning_rate_multiplier",
)


class BDKD(DistillMethod):
    """Online distillation balanced by the entropy gap between student and teacher; the teacher may train too."""

    type: Literal["bd_kd"] = "bd_kd"
    paper: ClassVar[str] = "2212.12965"
    temperature: Temperature = Field(
        1.0, description="softmax temperature of the KLs, which are multiplied by its square"
    )
    gate: Gate = Field("hard", description="how the entropy gap weights forward and reverse KL")
    nu: Nu = Field(2.0, description="weight of the favoured KL under the hard gate")
    kappa: Kappa = Field(1.0, description="steepness of the soft gate, per nat")
    tempered_entropy: bool = Field(
        True, description="compute the gate's entropies at `temperature`; false computes them at 1"
    )
    ce_weight: Weight = Field(1.0, description="weight of the cross-entropy with the labels, for both models")
    kd_weight: Weight = Field(1.0, description="weight of the KLs, for both models")
    teacher_trains: bool = Field(True, description="train the teacher beside the student")
    teacher_lora: Annotated[LoraSection | None, TEACHER_LORA] = Field(
        None, description="LoRA adapters of the teacher; null trains all of its weights"
    )
    teacher_learning_rate: Annotated[float | None, TEACHER_RATE] = Field(
        None, gt=0, le=1, description="learning rate of the teacher; default: the student's"
    )
    save_teacher: Annotated[bool, RECIPES_ONLY] = Field(
        False, description="save the trained teacher as teacher/ in the run's folder"
    )

    @field_validator("teacher_lora", "teacher_learning_rate", "save_teacher")
    @classmethod
    def _only_of_a_trained_teacher(cls, value: Any, info: ValidationInfo) -> Any:
        if value and not info.data.get("teacher_trains", True):
            raise ValueError("only allowed with teacher_trains: true")
        return value

    @field_validator("teacher_lora")
    @classmethod
    def _teachers_ranks_are_alike(cls, value: LoraSection | None) -> LoraSection | None:
        if value is not None and value.nested is not None:
            raise ValueError("nested: only the student's ranks can be nested; expected null")
        return value

    @property
    def teacher_training(self) -> TeacherTraining | None:
        """The settings of a teacher that trains beside the student; None if it is frozen."""
        if not self.teacher_trains:
            return None
        return TeacherTraining(self.teacher_lora, self.teacher_learning_rate, self.save_teacher)

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        """Return the sum over tokens of ce_weight CE + kd_weight KL for the student, plus the same for the teacher.

        The student's KL is the balanced one of `losses.balance`. A teacher that trains has temperature^2 KL(q || p).
        Neither term sends gradient into the other model (after arXiv 2212.12965).
        """
        found = linear_divergence(
            labels=tokens.labels,
            temperature=self.temperature,
            tempered_entropy=self.tempered_entropy,
            top1=True,
            objective=self._of_tokens,
            **operands(student, teacher),
        )
        metrics = {
            **token_metrics(found),
            "gate/share": found.teacher_entropy > found.student_entropy,
            "gate/forward_weight": self._balance(found).forward_weight,
        }
        return PairOutput.of(tokens, cast(Tensor, found.loss), metrics)

    def _of_tokens(self, found: Divergences) -> Tensor:
        balanced = self._balance(found)
        losses = self.ce_weight * cast(Tensor, found.student_ce) + self.kd_weight * balanced.student
        if self.teacher_trains:
            teacher_ce = cast(Tensor, found.teacher_ce)
            losses = losses + self.ce_weight * teacher_ce + self.kd_weight * balanced.teacher
        return losses

    def _balance(self, found: Divergences) -> BalancedLoss:
        return balance(
            found.forward_kl,
            found.reverse_kl,
            found.student_entropy,
            found.teacher_entropy,
            teacher_kl=found.teacher_reverse_kl,
            temperature=self.temperature,
            gate=self.gate,
            nu=self.nu,
            kappa=self.kappa,
        )
