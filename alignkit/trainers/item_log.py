"""Logging of per-item metrics and the check that losses are finite, shared by all trainers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from alignkit.trainers.metrics import ItemMetrics


class MeasuringCallback(TrainerCallback):
    """Base of callbacks that add metrics to the training log of an `ItemLog`."""

    items: ItemMetrics | None = None
    """The metrics of the trainer that has the callback; None where it is used by itself."""

    def measure(self, name: str, numerator: float, denominator: float = 1.0) -> None:
        """Record a part of a mean, as `ItemMetrics.add_ratio` does."""
        if self.items is not None:
            self.items.add_ratio(name, numerator, denominator)


class ItemLog:
    """Mixin before a TRL trainer that logs the metrics in `self._items[self._mode]`, as `eval_…` in evaluation."""

    model: Any
    state: Any
    processing_class: Any
    callback_handler: Any
    _total_train_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._items = {"train": ItemMetrics(), "eval": ItemMetrics()}
        super().__init__(*args, **kwargs)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, MeasuringCallback):
                callback.items = self._items["train"]

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def trained_tokens(self) -> int:
        """Tokens that the model has read in training, over all processes, including those before a resume."""
        return self._total_train_tokens

    def count_tokens(self, read: int) -> None:
        """Add `read` tokens, counted over all processes, to `trained_tokens`."""
        self._total_train_tokens += read

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the Trainer, adding the means gathered since the last call."""
        prefix = "eval_" if self._mode == "eval" else ""
        metrics = self._items[self._mode].take()
        if metrics:
            metrics["num_tokens"] = float(self.trained_tokens)
        logs.update({f"{prefix}{name}": value for name, value in metrics.items()})
        super().log(logs, start_time)  # type: ignore[misc]  # the method of the trainer after this mixin

    def _require_finite(
        self, losses: Tensor, inputs: dict[str, Tensor], parts: Sequence[str] = ("the loss",)
    ) -> None:
        """Raise FloatingPointError, with the texts of the rows at fault, if a loss is not finite.

        losses: [B], or [B, k] for the k names in `parts`. The message names the parts at fault.
        """
        finite = torch.isfinite(losses.detach()).reshape(len(losses), -1)
        if bool(finite.all()):
            return
        rows = (~finite.all(dim=1)).nonzero().flatten().tolist()
        wrong = [part for part, good in zip(parts, finite.all(dim=0).tolist(), strict=True) if not good]
        texts = [self.processing_class.decode(inputs["input_ids"][row])[:200] for row in rows[:3]]
        raise FloatingPointError(
            f"{', '.join(wrong)} is not finite at step {self.state.global_step}, rows {rows} of the batch, "
            f"which begin: {texts}"
        )
