"""What a run writes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit.estimate.memory import FLOAT, Layout, Model, optimizer_numbers

if TYPE_CHECKING:
    from alignkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes."""

    checkpoint: int
    """Of one."""
    checkpoints: int
    """How many; all are kept."""
    result: int
    """The adapter or the model."""

    @property
    def total(self) -> int:
        """Of the run's folder at its end."""
        return self.checkpoint * self.checkpoints + self.result


def disk(
    recipe: "Recipe", models: Mapping[str, Model], layout: Layout, steps: int | None, epochs: float
) -> Disk:
    """A checkpoint holds what trains and the optimizer's state; the result is the policy's weights alone."""
    trained = [model for model in models.values() if model.use.trains]
    every = recipe.training.save_steps
    count = math.ceil(steps / every) if steps and every else math.ceil(epochs)
    return Disk(
        checkpoint=sum(_saved(model) + _state(model, layout) for model in trained),
        checkpoints=count,
        result=_saved(models["policy"]),
    )


def _saved(model: Model) -> int:
    return model.shape.weight_bytes if model.use.lora is None else model.shape.trained_bytes


def _state(model: Model, layout: Layout) -> int:
    numbers = optimizer_numbers(layout.optimizer)
    if layout.stage.master_weights:
        return int((1 + numbers) * FLOAT * model.shape.trainable)
    return int(numbers * model.shape.trained_bytes)
