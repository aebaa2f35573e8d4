"""SinKD as a TRL trainer (arXiv 2402.17110): cross-entropy, a KL, and optimal transport between sets of tokens."""

from typing import Any

from alignkit.methods import SinKD
from alignkit.trainers.configs import SinKDConfig, own_config
from alignkit.trainers.distillation import DistillationTrainer
from alignkit.trainers.signature import Model, shows_parameters_of


class SinKDTrainer(DistillationTrainer):
    """Trainer of `methods.SinKD`, with a frozen teacher.

    Takes DistillationTrainer's arguments. `args` is a `SinKDConfig`; None means the defaults.
    """

    method: SinKD

    @shows_parameters_of(DistillationTrainer, "method")
    def __init__(
        self,
        model: Model | None = None,
        teacher_model: Model | None = None,
        args: SinKDConfig | None = None,  # type: ignore[valid-type]  # made from the method
        **kwargs: Any,
    ) -> None:
        """Create the trainer. Raises TypeError, before loading any model, if `args` is not a `SinKDConfig`."""
        config = own_config(SinKDConfig, args, model)
        super().__init__(model, teacher_model, config, method=config.method(), **kwargs)
