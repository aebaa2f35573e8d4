"""What a trainer reports while it runs: one event a log line, with the time left."""

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.run_folder import RunFolder

_NOT_METRICS = {"epoch", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
_EVAL_NOISE = ("_runtime", "_samples_per_second", "_steps_per_second")


class ProgressCallback(TrainerCallback):
    """Writes metrics and checkpoints to the run's events, and to the log as readable lines."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._clock = _Clock()
        self._saved_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock and say how much there is to do."""
        self._clock.start(state.global_step)
        if state.is_world_process_zero:
            beginning = f"resumed after step {state.global_step}" if state.global_step else "started"
            self._folder.emit(
                f"Training {beginning}: {state.max_steps} steps", data={"total_steps": state.max_steps}
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure."""
        self._clock.tick()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """One metrics event a training log, one an evaluation."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        metrics = rename(logs)
        data: dict[str, Any] = {"step": state.global_step, "total_steps": state.max_steps, **metrics}
        seconds = self._clock.remaining(state.global_step, state.max_steps)
        if seconds is not None:
            data["seconds_remaining"] = round(seconds)
        message = describe(data)
        print(message, flush=True)
        self._folder.emit(message, type="metrics", data=data)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the checkpoint that was just written."""
        if state.is_world_process_zero and state.global_step != self._saved_step:
            self._saved_step = state.global_step  # the end of an epoch may save a step again
            path = f"checkpoints/checkpoint-{state.global_step}"
            last = next((rename(entry) for entry in reversed(state.log_history) if "loss" in entry), {})
            self._folder.emit(
                f"Checkpoint created at step {state.global_step}",
                type="checkpoint",
                data={"step": state.global_step, "path": path, "metrics": last},
            )


class _Clock:
    """Time left, from the mean step so far; evaluations between steps count as part of a step."""

    def __init__(self) -> None:
        self._started = 0.0
        self._first_step = 0
        self._last = 0.0

    def start(self, step: int) -> None:
        self._started = self._last = time.monotonic()
        self._first_step = step

    def tick(self) -> None:
        self._last = time.monotonic()

    def remaining(self, step: int, total: int) -> float | None:
        done = step - self._first_step
        if done < 1:
            return None
        return (self._last - self._started) / done * (total - step)


def rename(logs: dict[str, float]) -> dict[str, float | None]:
    """Trainer logs under OpenAI's prefixes: `loss` -> `train_loss`, `eval_rewards/margins` ->
    `valid_rewards_margins`. A value that is not finite becomes None, as JSON has no NaN."""
    metrics: dict[str, float | None] = {}
    for name, value in logs.items():
        if name in _NOT_METRICS or name.endswith(_EVAL_NOISE) or not isinstance(value, int | float):
            continue
        prefix, rest = ("valid", name[5:]) if name.startswith("eval_") else ("train", name)
        metrics[f"{prefix}_{rest.replace('/', '_')}"] = value if math.isfinite(value) else None
    return metrics


def describe(data: dict[str, Any]) -> str:
    """One line for people: step, the figures that matter, time left."""
    shown = {
        "train_loss": "training loss",
        "valid_loss": "validation loss",
        "train_rewards_margins": "reward margin",
        "valid_rewards_margins": "held-out reward margin",
        "valid_rewards_accuracies": "held-out accuracy",
        "valid_answers_reference_logp": "its answers' log-prob a token under the reference",
        "valid_answers_repetition": "repeated share",
    }
    figures = [f"{label} {data[key]:.4g}" for key, label in shown.items() if data.get(key) is not None]
    left = data.get("seconds_remaining")
    if left is not None:
        figures.append(f"{left // 60}:{left % 60:02d} left")
    return f"Step {data['step']}/{data['total_steps']}: {', '.join(figures)}"
