"""TRL trainer subclasses, one a method."""

from alignkit.trainers.f_dpo import FDPOConfig, FDPOTrainer

__all__ = ["FDPOConfig", "FDPOTrainer"]
