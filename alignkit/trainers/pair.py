"""Student and teacher as one module: what is trained, wrapped by DDP or ZeRO, and called once a batch.

The losses are made inside its forward, where ZeRO-3 has both heads whole, and no logits leave it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from alignkit.kernels.model_head import HeadWeights, head_states, in_head


class Rows(NamedTuple):
    """One model's view of the batch's valid tokens: hidden states [N, H] and the head over them."""

    hidden: Tensor
    head: HeadWeights

    def take(self, index: Tensor) -> "Rows":
        """The rows of `index`."""
        return Rows(self.hidden[index], self.head)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The batch's valid tokens, those whose next-token label counts, in the order of `Rows`."""

    labels: Tensor
    """[N], the tokens to predict."""
    sequence: Tensor
    """[N], the sequence in the batch that each belongs to."""
    sequences: int
    seed: int
    """Of everything drawn at random from this batch."""
    calibrate: bool
    """Whether to measure calibration, which costs another product with each head."""

    def per_sequence(self, values: Tensor) -> Tensor:
        """[B], sums of `values` [N] over each sequence, detached."""
        values = values.detach()
        values = values if values.is_floating_point() else values.float()
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)


class PairOutput(NamedTuple):
    """What the pair's forward returns. A tuple of tensors and dicts, since ZeRO-3 hooks the tensors it finds."""

    loss: Tensor
    """Scalar, the sum over valid tokens, differentiable; the caller divides."""
    tokens: Tensor
    """[B], valid tokens of each sequence."""
    sums: dict[str, Tensor]
    """Of each metric its sum over each sequence's valid tokens, [B], detached."""
    calibration: dict[str, Tensor]
    """By model, [B, bins, 3] of `metrics.calibration_bins`; empty unless measured."""


Objective = Callable[[Rows, Rows, Tokens], PairOutput]
"""Student's and teacher's rows, and the tokens they predict."""


class TeacherStudentPair(nn.Module):
    """`student` (what is published) and `teacher`, each a causal LM with or without peft's wrapper.

    `pair(input_ids, labels, …)` gives a `PairOutput`; `pair(…, fused_lm_head=True)` is the student's own answer, and
    `pair(…, side="teacher")` whatever the teacher itself returns.
    What else the Trainer asks of a model (its config, dtype, card) the student answers.
    """

    sides = ("student", "teacher")

    def __init__(self, student: Any, teacher: Any, objective: Objective, *, teacher_trains: bool) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.objective = objective
        self.teacher_trains = teacher_trains
        if not teacher_trains:
            teacher.requires_grad_(False)
            teacher.eval()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        fused_lm_head: bool = False,
        side: Literal["student", "teacher"] | None = None,
        seed: int = 0,
        calibrate: bool = False,
        **inputs: Any,
    ) -> Any:
        """The objective over both models; padding and prompt tokens are dropped before the heads."""
        if side is not None or labels is None or fused_lm_head:
            if fused_lm_head:
                inputs |= {"labels": labels, "fused_lm_head": True}
            return getattr(self, side or "student")(input_ids=input_ids, **inputs)
        targets = labels[:, 1:]
        valid = targets != -100
        tokens = Tokens(targets[valid], valid.nonzero()[:, 0], len(labels), seed, calibrate)
        student, teacher = map(_bare, (self.student, self.teacher))
        of_student = head_states(student, input_ids=input_ids, **inputs).hidden[:, :-1][valid]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.teacher_trains):
            of_teacher = head_states(teacher, input_ids=input_ids, **inputs).hidden[:, :-1][valid]

        def in_students(head: HeadWeights, of_student: Tensor, of_teacher: Tensor) -> PairOutput:
            def in_teachers(teachers: HeadWeights, of_student: Tensor, of_teacher: Tensor) -> PairOutput:
                return self.objective(Rows(of_student, head), Rows(of_teacher, teachers), tokens)

            return in_head(teacher, in_teachers, of_student, of_teacher)

        return in_head(student, in_students, of_student, of_teacher)

    def train(self, mode: bool = True) -> "TeacherStudentPair":  # noqa: FBT001, FBT002 - torch's signature
        """A frozen teacher stays in evaluation: its dropout must not speak."""
        super().train(mode)
        if not self.teacher_trains:
            self.teacher.eval()
        return self

    def gradient_checkpointing_enable(self, *args: Any, **options: Any) -> None:
        """For the models that train."""
        for model in self._trained():
            model.gradient_checkpointing_enable(*args, **options)

    def gradient_checkpointing_disable(self) -> None:
        """For the models that train."""
        for model in self._trained():
            model.gradient_checkpointing_disable()

    def _trained(self) -> list[Any]:
        return [self.student, self.teacher] if self.teacher_trains else [self.student]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("student"), name)


def _bare(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model


def part_of_state(state: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Of a pair's state dict the part of its `student` or `teacher`, under that model's own names."""
    if state is None:
        return None
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
