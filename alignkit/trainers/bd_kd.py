"""Entropy-gap balanced distillation as a TRL trainer, after BD-KD (arXiv 2212.12965)."""

from typing import Any

from alignkit.methods import BDKD
from alignkit.trainers.configs import BDKDConfig, own_config
from alignkit.trainers.distillation import DistillationTrainer
from alignkit.trainers.signature import Model, shows_parameters_of


class BDKDTrainer(DistillationTrainer):
    """Trainer of `methods.BDKD`, with a teacher that trains beside the student or is frozen.

    Takes DistillationTrainer's arguments. `args` is a `BDKDConfig`; None means the defaults.
    """

    method: BDKD

    @shows_parameters_of(DistillationTrainer, "method")
    def __init__(
        self,
        model: Model | None = None,
        teacher_model: Model | None = None,
        args: BDKDConfig | None = None,  # type: ignore[valid-type]  # made from the method
        **kwargs: Any,
    ) -> None:
        """Create the trainer. Raises TypeError, before loading any model, if `args` is not a `BDKDConfig`."""
        config = own_config(BDKDConfig, args, model)
        super().__init__(model, teacher_model, config, method=config.method(), **kwargs)
