"""Subclasses of TRL's trainers: one per kind of row, and a named one for each published method."""

from alignkit import versions

versions.warn_if_untested()  # first: an untested version may break the imports below

from alignkit.trainers.bd_kd import BDKDTrainer
from alignkit.trainers.configs import (
    BDKDConfig,
    D2OConfig,
    DispreferredConfig,
    DistillationConfig,
    FDPOConfig,
    SinKDConfig,
)
from alignkit.trainers.d2o import D2OTrainer
from alignkit.trainers.distillation import DistillationTrainer
from alignkit.trainers.f_dpo import FDPOTrainer
from alignkit.trainers.labelled import LabelledTrainer
from alignkit.trainers.preference import PreferenceTrainer
from alignkit.trainers.ps_kd import PSKDTrainer
from alignkit.trainers.sinkd import SinKDTrainer
from alignkit.trainers.supervised import SupervisedTrainer

__all__ = [
    "BDKDConfig",
    "BDKDTrainer",
    "D2OConfig",
    "D2OTrainer",
    "DispreferredConfig",
    "DistillationConfig",
    "DistillationTrainer",
    "FDPOConfig",
    "FDPOTrainer",
    "LabelledTrainer",
    "PSKDTrainer",
    "PreferenceTrainer",
    "SinKDConfig",
    "SinKDTrainer",
    "SupervisedTrainer",
]
