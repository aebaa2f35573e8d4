"""SinKD as a TRL trainer (arXiv 2402.17110): cross-entropy, a KL, and optimal transport between sets of tokens."""

from typing import Any

from alignkit.methods import SinKD
from alignkit.trainers.configs import SinKDConfig, own_config
from alignkit.trainers.distillation import DistillationTrainer


class SinKDTrainer(DistillationTrainer):
    """Distillation from a frozen teacher whose loss is that of `methods.SinKD`.

    Takes DistillationTrainer's arguments, with a `SinKDConfig` as `args`, the default one where none is given.
    """

    method: SinKD

    def __init__(self, model: Any = None, teacher_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        """Raise TypeError for another configuration, such as TRL's, before anything is loaded."""
        config = own_config(SinKDConfig, args, model)
        super().__init__(model, teacher_model, config, method=config.method(), **kwargs)
