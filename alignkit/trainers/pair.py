"""Student and teacher as one module: what is trained, wrapped by DDP or ZeRO, and called once a batch.

The losses are made inside its forward, where ZeRO-3 has both heads whole, and no logits leave it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from alignkit.data.tokens import IGNORED
from alignkit.kernels.linear_logprob.confidence import linear_confidence
from alignkit.kernels.model_head import HeadWeights, head_states, in_head
from alignkit.losses.distillation import PairOutput, Rows, Tokens
from alignkit.trainers.metrics import calibration_bins

Objective = Callable[[Rows, Rows, Tokens], PairOutput]
"""A loss over the student's rows, the teacher's rows, and the tokens that both predict."""


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
        """The objective over both models; padding and prompt tokens are dropped before the heads.

        `seed` is that of everything drawn at random; `calibrate` measures calibration, at the cost of another product
        with each head.
        """
        if side is not None or labels is None or fused_lm_head:
            if fused_lm_head:
                inputs |= {"labels": labels, "fused_lm_head": True}
            return getattr(self, side or "student")(input_ids=input_ids, **inputs)
        targets = labels[:, 1:]
        valid = targets != IGNORED
        tokens = Tokens(targets[valid], valid.nonzero()[:, 0], len(labels), seed)
        student, teacher = map(_bare, (self.student, self.teacher))
        of_student = head_states(student, input_ids=input_ids, **inputs).hidden[:, :-1][valid]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.teacher_trains):
            of_teacher = head_states(teacher, input_ids=input_ids, **inputs).hidden[:, :-1][valid]

        def in_students(head: HeadWeights, of_student: Tensor, of_teacher: Tensor) -> PairOutput:
            def in_teachers(teachers: HeadWeights, of_student: Tensor, of_teacher: Tensor) -> PairOutput:
                rows = Rows(of_student, head), Rows(of_teacher, teachers)
                output = self.objective(*rows, tokens)
                return output._replace(calibration=_calibration(*rows, tokens)) if calibrate else output

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


def _calibration(student: Rows, teacher: Rows, tokens: Tokens) -> dict[str, Tensor]:
    """How sure and how right both models are on the tokens: [B, bins, 3] of `calibration_bins` each."""
    bins = {}
    for name, rows in (("student", student), ("teacher", teacher)):
        sure = linear_confidence(rows.hidden, labels=tokens.labels, **rows.head._asdict())
        bins[name] = calibration_bins(sure.probability, sure.right, tokens.sequence, groups=tokens.sequences)
    return bins


def _bare(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model


def part_of_state(state: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Of a pair's state dict the part of its `student` or `teacher`, under that model's own names."""
    if state is None:
        return None
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
