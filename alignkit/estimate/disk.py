"""Estimates the disk space of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alignkit.estimate.memory import Layout, Model, optimizer_bytes, trained_bytes
from alignkit.recipe import Recipe
from alignkit.run.evaluation_share import EVALUATIONS


@dataclass(frozen=True, slots=True)
class Disk:
    """Disk space of a run, in bytes."""

    checkpoint: int
    """Size of one checkpoint."""
    checkpoints: int
    """Number of checkpoints that are kept."""
    result: int
    """Size of the trained adapter or model."""

    @property
    def total(self) -> int:
        """Size of the run's folder at its end."""
        return self.checkpoint * self.checkpoints + self.result


def disk(
    recipe: Recipe, models: Mapping[str, Model], layout: Layout, steps: int | None, epochs: float
) -> Disk:
    """The disk space of a run.

    A checkpoint holds the trained weights and the optimizer state; the result holds the policy only. Both are stored
    as the engine holds them: FSDP2 under mixed precision in float32.
    """
    trained = [model for model in models.values() if model.use.trains]
    every = recipe.training.save_steps
    count = math.ceil(steps / every) if steps and every else math.ceil(epochs)
    limit = recipe.training.save_total_limit
    # each evaluated step may be the best so far, and the last checkpoint is kept beside it
    if recipe.keeps_best:
        interval = recipe.training.eval_steps
        if interval == "auto":
            count += EVALUATIONS
        else:
            count += math.ceil(steps / interval) if steps and interval else 1
        limit = max(limit, 2) if limit else None
    most = limit or count
    return Disk(
        checkpoint=sum(trained_bytes(model, layout) + optimizer_bytes(model, layout) for model in trained),
        checkpoints=min(count, most),
        result=trained_bytes(models["policy"], layout),
    )
