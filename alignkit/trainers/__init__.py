"""TRL trainer subclasses, one a method."""

from alignkit.trainers.f_dpo import FDPOConfig, FDPOTrainer
from alignkit.trainers.supervised import SupervisedTrainer

__all__ = ["FDPOConfig", "FDPOTrainer", "SupervisedTrainer"]
