"""Student and teacher as one module, which DDP or ZeRO wraps and which is called once per batch.

The loss is computed inside its forward, where ZeRO-3 has gathered both heads. No logits leave the module.
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
"""A loss of (student's rows, teacher's rows, tokens that both predict)."""


class TeacherStudentPair(nn.Module):
    """A `student`, which will be published, and its `teacher`, each a causal LM with or without peft's wrapper.

    `pair(input_ids, labels, …)` returns a `PairOutput`. `pair(…, fused_lm_head=True)` returns the student's own
    output, and `pair(…, side="teacher")` the teacher's. Other attributes, such as `config`, are the student's.
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
        """Compute the objective over both models. Tokens without loss are dropped before the heads.

        `seed` is the seed of all random draws. `calibrate` also measures calibration, at the cost of another matmul
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
        """Set the mode of the models. A frozen teacher stays in evaluation mode, without dropout."""
        super().train(mode)
        if not self.teacher_trains:
            self.teacher.eval()
        return self

    def gradient_checkpointing_enable(self, *args: Any, **options: Any) -> None:
        """Enable gradient checkpointing in the models that train."""
        for model in self._trained():
            model.gradient_checkpointing_enable(*args, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Disable gradient checkpointing in the models that train."""
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
    """Model -> `calibration_bins` [B, bins, 3] of its predictions of the tokens."""
    bins = {}
    for name, rows in (("student", student), ("teacher", teacher)):
        sure = linear_confidence(rows.hidden, labels=tokens.labels, **rows.head._asdict())
        bins[name] = calibration_bins(sure.probability, sure.right, tokens.sequence, groups=tokens.sequences)
    return bins


def _bare(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model


def part_of_state(state: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return the `student`'s or `teacher`'s part of a pair's state dict, under that model's own names."""
    if state is None:
        return None
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
