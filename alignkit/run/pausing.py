"""A run that can go on later: SIGTERM lets it finish its step, save a checkpoint and end.

An evaluation is cut short after a batch. Before the first step and after the last there is nothing to save, so that
the run ends at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Leaving(BaseException):
    """The run ends where it is. Not an Exception, since libraries go on after some of those."""


class EvaluationCut(Exception):  # noqa: N818 - nothing went wrong
    """An evaluation in the middle of training is left undone."""


class PauseCallback(TrainerCallback):
    """Ends the training after the step at which it was asked to; `paused` says whether anything is left to do."""

    def __init__(self) -> None:
        self.paused = False
        self._asked = False
        self._stepping = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """Pause after this step: the handler of SIGTERM."""
        self._asked = True
        if not self._stepping:
            raise Leaving

    def on_step_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """From now on there is something to save."""
        self._stepping = True

    def on_train_end(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Everything is saved."""
        self._stepping = False

    def on_prediction_step(
        self, args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """An evaluation may take longer than whoever asked will wait."""
        if self._stepping and self._asked_anywhere(args):
            self.paused = control.should_save = control.should_training_stop = True
            raise EvaluationCut

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop where asked; the last step is the end anyhow."""
        if state.global_step < state.max_steps and self._asked_anywhere(args):
            self.paused = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The epoch that ends here is cut short, and its state is saved already."""
        if self.paused:
            control.should_save = False

    def _asked_anywhere(self, args: TrainingArguments) -> bool:
        """Whether any process was asked: all must stop at the same step."""
        if args.world_size == 1:
            return self._asked

        asked = torch.tensor(int(self._asked), device=args.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())


@contextmanager
def pausing_on_sigterm() -> Iterator[PauseCallback]:
    """A callback that SIGTERM reaches, instead of ending the process."""
    callback = PauseCallback()
    before = signal.signal(signal.SIGTERM, callback.ask)
    try:
        yield callback
    finally:
        signal.signal(signal.SIGTERM, before)
