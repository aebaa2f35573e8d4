"""Methods that distil a teacher: a loss over student's and teacher's next-token distributions."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from alignkit.methods.base import Method
from alignkit.methods.work import NO_HEAD, Batch, HeadCost, ModelUse, Pass, Plan, Work, policy_use
from alignkit.options import GivenAs, JobContext
from alignkit.sections import LoraSection, TeacherSection

if TYPE_CHECKING:
    from alignkit.recipe import Recipe

Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(gt=0, le=100)]


def _model_of_the_service(name: str, context: JobContext) -> dict[str, Any]:
    source = context.resolve_model(name)
    return {"path": source.path, "adapter": source.adapter}


TEACHER = GivenAs(
    "teacher",
    Annotated[str, Field(min_length=1, max_length=255)],
    _model_of_the_service,
    description="name of a base model or of a fine-tuned model of the project",
    names_a_model=True,
)


class DistillMethod(Method):
    """A method that trains a student on a teacher's next-token distributions over the data's answers."""

    rows: ClassVar[str] = "completion"

    teacher: Annotated[TeacherSection, TEACHER] = Field(description="the model that is distilled")

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher trains beside the student."""
        return False

    @property
    def adapters_of_teacher(self) -> LoraSection | None:
        """The adapters with which the teacher trains; None for all its weights."""
        return None

    def further_heads(self, _batch: Batch) -> HeadCost:
        """Cost of fused heads beside those of the divergences."""
        return NO_HEAD

    def plan(self, recipe: "Recipe") -> Plan:
        """Student and teacher, each a forward, then the heads over both; the teacher's backward where it trains."""
        models = {
            "policy": policy_use(recipe),
            "teacher": ModelUse(
                self.teacher.path,
                self.teacher.dtype or recipe.model.dtype,
                "method.teacher.path",
                trains=self.trains_teacher,
                lora=self.adapters_of_teacher,
            ),
        }

        def work(batch: Batch) -> Work:
            from alignkit.estimate import heads  # the estimate imports the methods

            student, teachers = batch.heads["policy"], batch.heads["teacher"]
            both = heads.divergence(batch.tokens(batch.rows), student, teachers, gpu=batch.gpu)
            passes = (
                Pass("policy", batch.rows, batch.length, trains=True),
                Pass("teacher", batch.rows, batch.length, trains=self.trains_teacher, purpose="teacher"),
            )
            return Work(passes, heads=both + self.further_heads(batch))

        return Plan(models, work, self.micro_batch_matters)
