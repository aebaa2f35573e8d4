"""TRL trainer subclasses, one a method."""

from alignkit.trainers.bd_kd import BDKDConfig, BDKDTrainer
from alignkit.trainers.f_dpo import FDPOConfig, FDPOTrainer
from alignkit.trainers.sinkd import SinKDConfig, SinKDTrainer
from alignkit.trainers.supervised import SupervisedTrainer

__all__ = [
    "BDKDConfig",
    "BDKDTrainer",
    "FDPOConfig",
    "FDPOTrainer",
    "SinKDConfig",
    "SinKDTrainer",
    "SupervisedTrainer",
]
