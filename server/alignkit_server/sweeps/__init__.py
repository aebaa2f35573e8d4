"""Sweeps: a job at every combination of some hyperparameters, with the weak ones stopped early."""
