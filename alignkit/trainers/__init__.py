"""TRL trainer subclasses, one a method."""

from alignkit import versions

versions.warn_if_untested()  # first: an untested version may break the imports below

from alignkit.trainers.bd_kd import BDKDConfig, BDKDTrainer
from alignkit.trainers.d2o import D2OTrainer
from alignkit.trainers.d2o_config import D2OConfig
from alignkit.trainers.f_dpo import FDPOConfig, FDPOTrainer
from alignkit.trainers.sinkd import SinKDConfig, SinKDTrainer
from alignkit.trainers.supervised import SupervisedTrainer

__all__ = [
    "BDKDConfig",
    "BDKDTrainer",
    "D2OConfig",
    "D2OTrainer",
    "FDPOConfig",
    "FDPOTrainer",
    "SinKDConfig",
    "SinKDTrainer",
    "SupervisedTrainer",
]
