"""The estimate that a run's report compares with what the run took."""

import os

import torch

from alignkit.errors import AlignkitError
from alignkit.estimate import Lengths, estimate
from alignkit.estimate.devices import CPU, visible
from alignkit.recipe import Recipe
from alignkit.run import facts
from alignkit.run.folder import RunFolder
from alignkit.settling import STAGES
from alignkit.sharding import sharding


def keep_estimate(folder: RunFolder) -> None:
    """Estimate the run on this process's device, and keep the figures, or the reason why there are none."""
    lengths = facts.read(folder).get("lengths")
    if lengths is None:
        facts.keep(folder, estimate={"reason": "the lengths of its rows were not kept"})
        return
    count = int(os.environ.get("WORLD_SIZE", "1"))
    device = visible() if torch.cuda.is_available() else CPU
    try:
        found = estimate(
            Recipe.load(folder.recipe),
            Lengths(**lengths),
            device=device,
            count=count,
            stage=STAGES[sharding()],
        )
    except AlignkitError as error:
        facts.keep(folder, estimate={"reason": str(error)})
        return
    facts.keep(
        folder,
        estimate={
            "device": found.device.name,
            "devices": found.devices,
            "stage": found.stage,
            "micro_batch_size": found.micro_batch_size,
            "steps": found.steps,
            "step_seconds": found.step_seconds.step,
            "seconds": None if found.steps is None else found.steps * found.step_seconds.step,
            "peak_bytes": found.memory.peak,
        },
    )
