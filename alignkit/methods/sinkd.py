"""SinKD: distillation from a frozen teacher by optimal transport, beside cross-entropy and a KL."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from alignkit.methods.base import Method, RunContext
from alignkit.methods.distillation import (
    DistillationHyperparameters,
    config_arguments,
    distillation_plan,
    section_values,
    trainer_arguments,
)
from alignkit.methods.work import NO_HEAD, Batch, HeadCost, Plan
from alignkit.schema import Section
from alignkit.sections import TeacherSection

if TYPE_CHECKING:
    from alignkit.recipe import Recipe

Mode = Literal["token_set", "per_sequence"]
Reduction = Literal["sum", "mean"]
Gradient = Literal["unrolled", "envelope"]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(gt=0, le=100)]
Epsilon = Annotated[float, Field(gt=0, le=100)]
Iterations = Annotated[int, Field(ge=1, le=10_000)]
MaxRows = Annotated[int, Field(ge=1, le=65_536)]


class SinKDSection(Section):
    """SinKD: the teacher, the weights of the three terms, and the transport."""

    type: Literal["sinkd"] = "sinkd"
    teacher: TeacherSection
    temperature: Temperature = Field(2.0, description="softmax temperature of the rows that are matched")
    epsilon: Epsilon = Field(0.1, description="entropic strength of the transport; costs are at most 2")
    iterations: Iterations = Field(20, description="Sinkhorn scalings of rows and columns")
    sinkhorn_weight: Weight = Field(8e-4, description="weight of the transport")
    ce_weight: Weight = Field(1.0, description="weight of the cross-entropy with the labels")
    kl_weight: Weight = Field(0.1, description="weight of KL(teacher || student) of each token")
    kl_temperature: Temperature = Field(1.0, description="temperature of that KL; its square does not enter")
    mode: Mode = Field(
        "token_set", description="match the tokens of a micro-batch, or of each answer (per_sequence)"
    )
    max_rows: MaxRows = Field(256, description="tokens of a set that are matched; of more, a sample is drawn")
    reduction: Reduction = Field("sum", description="sum, which grows with a set's rows, or mean over them")
    debiased: bool = Field(False, description="subtract the transport of each side with itself")
    gradient: Gradient = Field("unrolled", description="unrolled, or envelope: the plan held fixed")


class SinKDHyperparameters(DistillationHyperparameters):
    """SinKD's own, as in a recipe."""

    temperature: Temperature = 2.0
    epsilon: Epsilon = 0.1
    iterations: Iterations = 20
    sinkhorn_weight: Weight = 8e-4
    ce_weight: Weight = 1.0
    kl_weight: Weight = 0.1
    kl_temperature: Temperature = 1.0
    mode: Mode = "token_set"
    max_rows: MaxRows = 256
    reduction: Reduction = "sum"
    debiased: bool = False
    gradient: Gradient = "unrolled"


def build(context: RunContext) -> Any:
    """A SinKDTrainer for the recipe."""
    from alignkit.trainers import SinKDConfig, SinKDTrainer

    method = cast(SinKDSection, context.recipe.method)
    config = SinKDConfig(**config_arguments(context), **method.model_dump(exclude={"type", "teacher"}))
    return SinKDTrainer(args=config, **trainer_arguments(context, method.teacher))


def plan(recipe: "Recipe") -> Plan:
    """Student and frozen teacher; beside the KL's heads the transport between rows of both."""
    method = cast(SinKDSection, recipe.method)

    def transport(batch: Batch) -> HeadCost:
        from alignkit.estimate import heads

        if not method.sinkhorn_weight:
            return NO_HEAD
        sets, tokens = {
            "token_set": (1, batch.tokens(batch.rows)),
            "per_sequence": (batch.rows, batch.tokens(1)),
        }[method.mode]
        sizes = batch.heads["policy"], batch.heads["teacher"]
        return heads.transport(min(tokens, method.max_rows), sets, *sizes, iterations=method.iterations)

    return distillation_plan(recipe, method.teacher, further_heads=transport, micro_batch_matters=True)


SINKD = Method(
    "sinkd",
    SinKDSection,
    SinKDHyperparameters,
    build,
    plan,
    learning_rate=1e-4,
    section_values=section_values,
)
