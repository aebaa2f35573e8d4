"""Pausing of a run: on SIGTERM it finishes its step, saves a checkpoint and ends, so that it can be resumed.

An evaluation is aborted after the current batch. Before the first step and after the last there is nothing to save,
so the run ends immediately.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Leaving(BaseException):
    """The run ends immediately. Not an Exception, because libraries swallow some of those."""


class EvaluationCut(Exception):  # noqa: N818 - nothing went wrong
    """An evaluation during training is aborted."""


class PauseCallback(TrainerCallback):
    """Ends training after the step at which a pause was requested; `paused` tells whether steps are left.

    Training also ends after the step `at`, with an evaluation first if the run `evaluates`.
    """

    def __init__(self, at: int | None = None, *, evaluates: bool = False) -> None:
        self.paused = False
        self._at = at
        self._evaluates = evaluates
        self._asked = False
        self._stepping = False

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """Request a pause after this step; the handler of SIGTERM."""
        self._asked = True
        if not self._stepping:
            raise Leaving

    def on_step_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Note that there is now something to save."""
        self._stepping = True

    def on_train_end(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Note that everything is saved."""
        self._stepping = False

    def on_prediction_step(
        self, args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Abort an evaluation if a pause was requested: it may take longer than the requester waits."""
        if self._stepping and self._asked_anywhere(args):
            self.paused = control.should_save = control.should_training_stop = True
            raise EvaluationCut

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop if a pause was requested, except after the last step, which ends training anyway."""
        if state.global_step >= state.max_steps:
            return
        if self._asked_anywhere(args):
            self.paused = control.should_save = control.should_training_stop = True
        elif state.global_step == self._at:
            self.paused = control.should_save = control.should_training_stop = True
            control.should_evaluate = control.should_evaluate or self._evaluates

    def on_epoch_end(
        self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Skip the save at the end of an aborted epoch, because its state is already saved."""
        if self.paused:
            control.should_save = False

    def _asked_anywhere(self, args: TrainingArguments) -> bool:
        """Whether a pause was requested on any rank: all ranks must stop at the same step."""
        if args.world_size == 1:
            return self._asked

        asked = torch.tensor(int(self._asked), device=args.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())


@contextmanager
def pausing_on_sigterm(at: int | None = None, *, evaluates: bool = False) -> Iterator[PauseCallback]:
    """A callback that receives SIGTERM, which no longer ends the process; see `PauseCallback`."""
    callback = PauseCallback(at, evaluates=evaluates)
    before = signal.signal(signal.SIGTERM, callback.ask)
    try:
        yield callback
    finally:
        signal.signal(signal.SIGTERM, before)
