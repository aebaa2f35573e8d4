"""TRL trainer subclasses, one a method."""

from alignkit.trainers.d2o import D2OTrainer
from alignkit.trainers.d2o_config import D2OConfig
from alignkit.trainers.f_dpo import FDPOConfig, FDPOTrainer

__all__ = ["D2OConfig", "D2OTrainer", "FDPOConfig", "FDPOTrainer"]
