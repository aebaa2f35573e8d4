"""Sweeps: one recipe at every combination of some values, with the weak runs stopped early."""

from alignkit.sweep.points import MOST_POINTS, Halving, Point, SweepSpec, sweep_of

__all__ = ["MOST_POINTS", "Halving", "Point", "SweepSpec", "sweep_of"]
