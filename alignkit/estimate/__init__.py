"""Estimates a run before it starts: memory by kind, time, disk, and the smallest configuration that fits.

    lengths = lengths_of(recipe)
    estimate(recipe, lengths, device="h100", count=8, stage="zero3").memory.peak
    smallest(recipe, lengths, device="h100")

Memory follows from the model's own code and the buffers of the head kernels; time follows from stated assumptions.
"""

from alignkit.estimate.devices import EstimateError, at_hand
from alignkit.estimate.devices import names as device_names
from alignkit.estimate.estimating import Estimate, compare, estimate, smallest
from alignkit.estimate.lengths import Lengths, trained_rows
from alignkit.estimate.lengths import count as count_lengths
from alignkit.estimate.lengths import read as lengths_of
from alignkit.estimate.lengths import steps as run_steps
from alignkit.estimate.sharding import STAGES

__all__ = [
    "STAGES",
    "Estimate",
    "EstimateError",
    "Lengths",
    "at_hand",
    "compare",
    "count_lengths",
    "device_names",
    "estimate",
    "lengths_of",
    "run_steps",
    "smallest",
    "trained_rows",
]
