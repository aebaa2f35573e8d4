"""Estimates a run before it starts: memory by kind, time, disk, and the smallest configuration that fits.

    lengths = lengths_of(recipe)
    estimate(recipe, lengths, device="h100", count=8, stage="zero3").memory.peak
    smallest(recipe, lengths, device="h100")

Memory follows from the model's own code and the buffers of the head kernels; time follows from stated assumptions.
"""

from alignkit.estimate.devices import Device, EstimateError, at_hand, unmeasured
from alignkit.estimate.devices import names as device_names
from alignkit.estimate.estimating import Estimate, compare, estimate, smallest
from alignkit.estimate.fitting import Fitted, fit, without_estimate
from alignkit.estimate.lengths import Lengths, trained_rows
from alignkit.estimate.lengths import assumed as assumed_lengths
from alignkit.estimate.lengths import count as count_lengths
from alignkit.estimate.lengths import read as lengths_of
from alignkit.estimate.lengths import steps as run_steps
from alignkit.estimate.sharding import STAGES

__all__ = [
    "STAGES",
    "Device",
    "Estimate",
    "EstimateError",
    "Fitted",
    "Lengths",
    "assumed_lengths",
    "at_hand",
    "compare",
    "count_lengths",
    "device_names",
    "estimate",
    "fit",
    "lengths_of",
    "run_steps",
    "smallest",
    "trained_rows",
    "unmeasured",
    "without_estimate",
]
