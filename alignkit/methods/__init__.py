"""The methods: one file each, one entry each. Importing this imports neither torch's trainers nor TRL."""

from alignkit.methods.base import Hyperparameters, Method, ModelSource, ResolveModel, RunContext
from alignkit.methods.bd_kd import BD_KD
from alignkit.methods.d2o import D2O
from alignkit.methods.f_dpo import DPO, F_DPO
from alignkit.methods.sinkd import SINKD
from alignkit.methods.supervised import SUPERVISED
from alignkit.schema import Section

METHODS: dict[str, Method] = {method.name: method for method in (F_DPO, DPO, SUPERVISED, D2O, SINKD, BD_KD)}
"""By `method.type` of a job. A recipe's `method.type` is the `type` of the method's section."""

__all__ = ["METHODS", "Hyperparameters", "Method", "ModelSource", "ResolveModel", "RunContext", "method_of"]


def method_of(section: Section) -> Method:
    """The method whose part of a recipe this is."""
    return next(method for method in METHODS.values() if isinstance(section, method.section))
