"""The trainer's reports while it runs: one event per log entry, with the remaining time."""

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.run import facts
from alignkit.run.evaluation_share import EVALUATION_ROW
from alignkit.run.folder import RunFolder

_NOT_METRICS = {"epoch", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
_EVAL_NOISE = ("_runtime", "_samples_per_second", "_steps_per_second")


class ProgressCallback(TrainerCallback):
    """Writes metrics and checkpoints to the run's events, and readable lines to the log."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._clock = Clock()
        self._meter = facts.Meter()
        self._resumes = False
        self._rows_evaluated = 0
        self._saved_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the number of steps."""
        held_out = kwargs.get("eval_dataloader")
        self._rows_evaluated = len(held_out.dataset) if held_out is not None else 0
        self._resumes = state.global_step > 0
        if state.is_world_process_zero:
            beginning = f"resumed after step {state.global_step}" if state.global_step else "started"
            self._folder.emit(
                f"Training {beginning}: {state.max_steps} steps", data={"total_steps": state.max_steps}
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the time of a step."""
        self._clock.begin_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the time of a step."""
        self._meter.step(self._clock.end_step())

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the time of an evaluation."""
        self._clock.evaluated()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what the steps took, for the report."""
        if facts.wanted():
            earlier = facts.read(self._folder).get("measured", {}) if self._resumes else {}
            facts.keep(self._folder, measured=self._meter.values(earlier))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Emit one metrics event per training log entry, and one per evaluation."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        metrics = rename(logs)
        data: dict[str, Any] = {"step": state.global_step, "total_steps": state.max_steps, **metrics}
        evaluated = any(name.startswith("eval_") for name in logs)
        seconds = self._remaining(args, state, evaluated=evaluated)
        if seconds is not None:
            data["seconds_remaining"] = round(seconds)
        message = describe(data)
        print(message, flush=True)
        self._folder.emit(message, type="metrics", data=data)

    def _remaining(self, args: TrainingArguments, state: TrainerState, *, evaluated: bool) -> float | None:
        """Seconds left; includes the current step's own evaluation unless `evaluated`."""
        every = int(args.eval_steps) if args.eval_strategy == "steps" and args.eval_steps else None
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        left = evaluations_left(
            state.global_step if evaluated else state.global_step - 1, state.max_steps, every
        )
        return self._clock.remaining(state.max_steps - state.global_step, left, rows, self._rows_evaluated)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the checkpoint that was just written."""
        if state.is_world_process_zero and state.global_step != self._saved_step:
            self._saved_step = state.global_step  # the end of an epoch may save a step again
            path = f"checkpoints/checkpoint-{state.global_step}"
            last = checkpoint_metrics(state)
            self._folder.emit(
                f"Checkpoint created at step {state.global_step}",
                type="checkpoint",
                data={"step": state.global_step, "path": path, "metrics": last},
            )


def checkpoint_metrics(state: TrainerState) -> dict[str, Any]:
    """The metrics of a checkpoint: those of the last training log entry, and of the step's own evaluation.

    An evaluation covers the whole validation file, so OpenAI's `full_valid_…` metrics have the same values.
    """
    trained: dict[str, Any] = next((e for e in reversed(state.log_history) if "loss" in e), {})
    evaluated = {
        name: value
        for entry in state.log_history
        if entry.get("step") == state.global_step
        for name, value in entry.items()
        if name.startswith("eval_")
    }
    metrics: dict[str, Any] = rename({**trained, **evaluated})
    for name in ("valid_loss", "valid_mean_token_accuracy"):
        if name in metrics:
            metrics[f"full_{name}"] = metrics[name]
    return metrics


class Clock:
    """Estimates the time left from the median of recent steps and the mean of pauses for evaluations."""

    RECENT = 25
    """Number of steps for the median: a run's speed changes when other work shares the machine."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._ended = now()
        self._steps: deque[float] = deque(maxlen=self.RECENT)
        self._pauses: list[float] = []
        self._evaluating = False

    def begin_step(self) -> None:
        """Note the start of a step, which ends the pause before it."""
        self._began = self._now()
        if self._evaluating and self._steps:
            self._pauses.append(self._began - self._ended)
        self._evaluating = False

    def end_step(self) -> float:
        """Note the end of a step. Returns its seconds."""
        self._ended = self._now()
        self._steps.append(self._ended - self._began)
        return self._steps[-1]

    def evaluated(self) -> None:
        """Note that the pause since the last step is an evaluation."""
        self._evaluating = True

    def remaining(self, steps: int, evaluations: int, rows_a_step: int, rows_evaluated: int) -> float | None:
        """Seconds left for that many steps and evaluations; None before the first step.

        Before the first evaluation, its time is guessed from its number of rows.
        """
        if not self._steps:
            return None
        step = median(self._steps)
        guess = step * EVALUATION_ROW * rows_evaluated / max(rows_a_step, 1)
        pause = fmean(self._pauses) if self._pauses else guess
        return steps * step + evaluations * pause


def evaluations_left(step: int, total: int, every: int | None) -> int:
    """The number of evaluations after `step`: one every `every` steps, and one at the end."""
    if not every or step >= total:
        return 0
    return total // every - step // every + (total % every != 0)


def rename(logs: dict[str, float]) -> dict[str, float | None]:
    """Trainer logs under OpenAI's names: `loss` -> `train_loss`, `eval_rewards/margins` -> `valid_rewards_margins`.

    A value that is not finite becomes None, because JSON has no NaN.
    """
    metrics: dict[str, float | None] = {}
    for name, value in logs.items():
        if name in _NOT_METRICS or name.endswith(_EVAL_NOISE) or not isinstance(value, int | float):
            continue
        prefix, rest = ("valid", name[5:]) if name.startswith("eval_") else ("train", name)
        metrics[f"{prefix}_{rest.replace('/', '_')}"] = value if math.isfinite(value) else None
    return metrics


def describe(data: dict[str, Any]) -> str:
    """A line for people: step, the most important metrics, time left."""
    shown = {
        "train_loss": "training loss",
        "valid_loss": "validation loss",
        "train_rewards_margins": "reward margin",
        "valid_rewards_margins": "held-out reward margin",
        "valid_rewards_accuracies": "held-out accuracy",
    }
    figures = [f"{label} {data[key]:.4g}" for key, label in shown.items() if data.get(key) is not None]
    if data.get("valid_answers_sound") is not None:
        figures.append(_guarded(data))
    left = data.get("seconds_remaining")
    if left is not None:
        figures.append(f"{left // 60}:{left % 60:02d} left")
    return f"Step {data['step']}/{data['total_steps']}: {', '.join(figures)}"


def _guarded(data: dict[str, Any]) -> str:
    """The collapse guard's verdict in words, with its measure if there is a reference."""
    verdict = "answers are sound" if data["valid_answers_sound"] else "answers may have collapsed"
    names = ("reference_logp_before", "reference_logp", "reference_logp_limit")
    before, found, limit = (data.get(f"valid_answers_{name}") for name in names)
    if before is None or found is None or limit is None:
        return verdict
    return f"{verdict} ({before:.1f} → {found:.1f}, limit {limit:.1f})"
