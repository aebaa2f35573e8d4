"""Training methods, one file each. `METHODS` maps names to classes; a recipe may also name a class by import path."""

from alignkit.methods.base import Method, ModelSource, ResolveModel
from alignkit.methods.bd_kd import BDKD
from alignkit.methods.completion import CompletionMethod
from alignkit.methods.d2o import D2O
from alignkit.methods.distillation import DistillMethod
from alignkit.methods.f_dpo import DPO, FDPO
from alignkit.methods.f_kd import FKD
from alignkit.methods.hyperparameters import Hyperparameters, hyperparameters_of, names_of_models
from alignkit.methods.ipo import IPO
from alignkit.methods.kto import KTO
from alignkit.methods.labelled import LabelledMethod
from alignkit.methods.mapo import MaPO
from alignkit.methods.orpo import ORPO
from alignkit.methods.preference import PairMethod
from alignkit.methods.ps_kd import PSKD
from alignkit.methods.registry import METHODS, get, register
from alignkit.methods.simpo import SimPO
from alignkit.methods.sinkd import SinKD
from alignkit.methods.supervised import Supervised

BUILT_IN: tuple[type[Method], ...] = (
    FDPO,
    DPO,
    Supervised,
    D2O,
    SinKD,
    BDKD,
    FKD,
    PSKD,
    SimPO,
    ORPO,
    MaPO,
    IPO,
    KTO,
)
for _method in BUILT_IN:
    register(_method)

__all__ = [
    "BDKD",
    "D2O",
    "DPO",
    "FDPO",
    "FKD",
    "IPO",
    "KTO",
    "METHODS",
    "ORPO",
    "PSKD",
    "CompletionMethod",
    "DistillMethod",
    "Hyperparameters",
    "LabelledMethod",
    "MaPO",
    "Method",
    "ModelSource",
    "PairMethod",
    "ResolveModel",
    "SimPO",
    "SinKD",
    "Supervised",
    "get",
    "hyperparameters_of",
    "names_of_models",
    "register",
]
