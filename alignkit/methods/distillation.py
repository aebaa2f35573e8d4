"""Base class of distillation methods: a loss over the student's and the teacher's next-token distributions."""

from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field

from alignkit.adapter_sections import LoraSection
from alignkit.kernels import costs
from alignkit.kernels.costs import NO_HEAD, HeadCost
from alignkit.kernels.model_head import HeadWeights
from alignkit.losses.distillation import PairOutput, Rows, Tokens
from alignkit.methods.base import Method
from alignkit.methods.work import Batch, ModelUse, Pass, Plan, Work, policy_use
from alignkit.options import GivenAs, JobContext
from alignkit.sections import RunSections, TeacherSection

Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(gt=0, le=100)]


def _model_of_the_service(name: str, context: JobContext) -> dict[str, Any]:
    source = context.resolve_model(name)
    return {"path": source.path, "adapter": source.adapter}


TEACHER = GivenAs(
    "teacher",
    Annotated[str, Field(min_length=1, max_length=255)],
    _model_of_the_service,
    description="name of a base model, or of one of the project's fine-tuned models",
    names_a_model=True,
)


class TeacherTraining(NamedTuple):
    """The settings of a teacher that trains beside its student."""

    lora: LoraSection | None
    """LoRA adapters of the teacher; None trains all of its weights."""
    learning_rate: float | None
    """Learning rate of the teacher; None for the student's."""
    saved: bool
    """Whether the trained teacher is saved beside the student at the end."""


class DistillMethod(Method):
    """A method that trains a student on a teacher's next-token distributions over the answers of completion rows.

    A subclass declares its options as fields and defines `objective`.
    """

    rows: ClassVar[str] = "completion"

    teacher: Annotated[TeacherSection, TEACHER] = Field(description="the model to distil")

    @property
    def teacher_training(self) -> TeacherTraining | None:
        """The settings of a teacher that trains beside the student; None if it is frozen."""
        return None

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        """Return the summed loss and the metrics of N tokens. The trainer divides by the optimizer step's tokens.

        Called while both heads' weights are gathered, so the weights are whole under every sharding. Use
        `kernels.linear_divergence` to avoid making tensors of shape [N, V].
        """
        raise NotImplementedError

    def further_heads(self, _batch: Batch) -> HeadCost:
        """Return the cost of fused heads other than `linear_divergence`."""
        return NO_HEAD

    def try_out(self) -> None:
        """Run the objective on four tokens. Raises ValueError unless its loss is finite and differentiable."""
        states = torch.linspace(-1, 1, 24).view(2, 4, 3)
        heads = torch.linspace(1, -1, 30).view(2, 5, 3)
        student, teacher = (
            Rows(hidden, HeadWeights(weight, None, 1.0, None))
            for hidden, weight in zip(states, heads, strict=True)
        )
        student.hidden.requires_grad_()
        teacher.hidden.requires_grad_(self.teacher_training is not None)
        tokens = Tokens(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1]), 2)
        try:
            found = self.objective(student, teacher, tokens)
        except Exception as error:  # the method is the user's, and may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{type(self).__name__}.objective fails on four tokens: {reason}") from error
        if problem := _problem(found):
            raise ValueError(f"{type(self).__name__}.objective: {problem}")

    def plan(self, recipe: RunSections) -> Plan:
        """Plan a forward of student and teacher, the heads over both, and a backward of each model that trains."""
        training = self.teacher_training
        models = {
            "policy": policy_use(recipe),
            "teacher": ModelUse(
                self.teacher.path,
                self.teacher.dtype or recipe.model.dtype,
                "method.teacher.path",
                trains=training is not None,
                lora=None if training is None else training.lora,
            ),
        }

        def work(batch: Batch) -> Work:
            student, teachers = batch.heads["policy"], batch.heads["teacher"]
            both = costs.divergence(batch.tokens(batch.rows), student, teachers, gpu=batch.gpu)
            passes = (
                Pass("policy", batch.rows, batch.length, trains=True),
                Pass("teacher", batch.rows, batch.length, trains=training is not None, purpose="teacher"),
            )
            return Work(passes, heads=both + self.further_heads(batch))

        return Plan(models, work, self.micro_batch_matters)


def _problem(found: object) -> str | None:
    """Why the result of an objective over four tokens of two sequences is wrong; None if it is sound."""
    if not isinstance(found, PairOutput):
        return f"expected a PairOutput, found {type(found).__name__}"
    loss, sums = found.loss, found.sums
    wrong = ", ".join(name for name, values in sums.items() if list(values.shape) != [2])
    faults = (
        (loss.dim() > 0, f"expected the sum of the tokens' losses, found shape {list(loss.shape)}"),
        (bool(wrong), f"expected sums of shape [2] for two sequences, found other shapes for {wrong}"),
        ("loss" not in sums, "expected `loss` among the sums, as PairOutput.of makes them"),
        (
            not loss.requires_grad,
            "expected a loss with a gradient to the student's hidden states, found none",
        ),
        (not bool(torch.isfinite(loss).all()), f"expected a finite loss, found {loss.tolist()}"),
    )
    return next((message for is_fault, message in faults if is_fault), None)
