"""BD-KD: distillation balanced by the entropy gap, the teacher training beside the student or frozen."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, ValidationInfo, field_validator

from alignkit.methods.arguments import peft_config
from alignkit.methods.base import Method, ResolveModel, RunContext
from alignkit.methods.distillation import (
    DistillationHyperparameters,
    config_arguments,
    distillation_plan,
    section_values,
    trainer_arguments,
)
from alignkit.methods.work import Plan
from alignkit.schema import Section
from alignkit.sections import LoraSection, TeacherSection

if TYPE_CHECKING:
    from alignkit.recipe import Recipe

Gate = Literal["hard", "soft"]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(gt=0, le=100)]
Nu = Annotated[float, Field(ge=1, le=1e6)]
Kappa = Annotated[float, Field(ge=0, le=1e6)]


class BDKDSection(Section):
    """BD-KD: the teacher and how it trains, and the gate."""

    type: Literal["bd_kd"] = "bd_kd"
    teacher: TeacherSection
    temperature: Temperature = Field(
        1.0, description="softmax temperature of the KLs, multiplied by its square"
    )
    gate: Gate = Field("hard", description="how the entropy gap weighs forward and reverse KL")
    nu: Nu = Field(2.0, description="the favoured KL's weight under the hard gate")
    kappa: Kappa = Field(1.0, description="steepness of the soft gate, per nat")
    tempered_entropy: bool = Field(
        True, description="take the gate's entropies at the temperature, else at 1"
    )
    ce_weight: Weight = Field(1.0, description="weight of the cross-entropy with the labels, of both models")
    kd_weight: Weight = Field(1.0, description="weight of the KLs, of both models")
    teacher_trains: bool = Field(True, description="train the teacher beside the student")
    teacher_lora: LoraSection | None = Field(
        None, description="adapters of the teacher; null trains all its weights"
    )
    teacher_learning_rate: float | None = Field(None, gt=0, le=1, description="default: the student's")
    save_teacher: bool = Field(False, description="save the trained teacher in the run's folder, as teacher/")

    @field_validator("teacher_lora", "teacher_learning_rate", "save_teacher")
    @classmethod
    def _of_a_trained_teacher(cls, value: Any, info: ValidationInfo) -> Any:
        if value and not info.data.get("teacher_trains", True):
            raise ValueError("is of no use where the teacher is frozen (teacher_trains: false)")
        return value


class BDKDHyperparameters(DistillationHyperparameters):
    """BD-KD's own, as in a recipe; a teacher that trains does so with adapters."""

    temperature: Temperature = 1.0
    gate: Gate = "hard"
    nu: Nu = 2.0
    kappa: Kappa = 1.0
    tempered_entropy: bool = True
    ce_weight: Weight = 1.0
    kd_weight: Weight = 1.0
    teacher_trains: bool = True
    teacher_lora_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Default: lora_rank."""
    teacher_learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Default: learning_rate_multiplier."""

    @field_validator("teacher_lora_rank", "teacher_learning_rate_multiplier")
    @classmethod
    def _of_a_trained_teacher(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and not info.data.get("teacher_trains", True):
            raise ValueError("is of no use where the teacher is frozen (teacher_trains: false)")
        return value


def job_section_values(resolved: Mapping[str, Any], resolve_model: ResolveModel) -> dict[str, Any]:
    """Of a job's hyperparameters, what the recipe names otherwise."""
    values = section_values(resolved, resolve_model)
    if resolved["teacher_trains"]:
        rank = resolved["teacher_lora_rank"] or resolved["lora_rank"]
        values["teacher_lora"] = {"r": rank, "alpha": 2.0 * rank}
        if resolved["teacher_learning_rate_multiplier"] is not None:
            values["teacher_learning_rate"] = LEARNING_RATE * resolved["teacher_learning_rate_multiplier"]
    return values


def build(context: RunContext) -> Any:
    """A BDKDTrainer for the recipe."""
    from alignkit.trainers import BDKDConfig, BDKDTrainer

    method = cast(BDKDSection, context.recipe.method)
    own = method.model_dump(exclude={"type", "teacher", "teacher_lora"})
    return BDKDTrainer(
        args=BDKDConfig(**config_arguments(context), **own),
        teacher_peft_config=peft_config(method.teacher_lora),
        **trainer_arguments(context, method.teacher),
    )


def plan(recipe: "Recipe") -> Plan:
    """Both models, of which the teacher may train too."""
    method = cast(BDKDSection, recipe.method)
    return distillation_plan(
        recipe, method.teacher, teacher_trains=method.teacher_trains, teacher_lora=method.teacher_lora
    )


LEARNING_RATE = 1e-4
BD_KD = Method(
    "bd_kd",
    BDKDSection,
    BDKDHyperparameters,
    build,
    plan,
    learning_rate=LEARNING_RATE,
    section_values=job_section_values,
)
