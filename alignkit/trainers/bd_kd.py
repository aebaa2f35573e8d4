"""Entropy-gap balanced distillation as a TRL trainer, after BD-KD (arXiv 2212.12965)."""

from typing import Any

from alignkit.methods import BDKD
from alignkit.trainers.configs import BDKDConfig, own_config
from alignkit.trainers.distillation import DistillationTrainer


class BDKDTrainer(DistillationTrainer):
    """Distillation whose loss is that of `methods.BDKD`; the teacher trains beside the student, or is frozen.

    Takes DistillationTrainer's arguments, with a `BDKDConfig` as `args`, the default one where none is given.
    """

    method: BDKD

    def __init__(self, model: Any = None, teacher_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        """Raise TypeError for another configuration, such as TRL's, before anything is loaded."""
        config = own_config(BDKDConfig, args, model)
        super().__init__(model, teacher_model, config, method=config.method(), **kwargs)
