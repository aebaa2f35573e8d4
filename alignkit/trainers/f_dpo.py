"""f-DPO as a TRL trainer (arXiv 2309.16240): DPOTrainer with any f-divergence."""

from typing import Any

from transformers import PreTrainedModel

from alignkit.methods import FDPO
from alignkit.trainers.configs import FDPOConfig, own_config
from alignkit.trainers.preference import PreferenceTrainer
from alignkit.trainers.signature import Model, shows_parameters_of


class FDPOTrainer(PreferenceTrainer):
    """DPOTrainer whose loss is `losses.f_dpo_loss` with `args.divergence`. Logged rewards are beta s(z).

    Takes DPOTrainer's arguments. `args` is an `FDPOConfig`; None means the defaults.
    """

    method: FDPO

    @shows_parameters_of(PreferenceTrainer, "method")
    def __init__(
        self,
        model: Model | None = None,
        ref_model: PreTrainedModel | None = None,
        args: FDPOConfig | None = None,  # type: ignore[valid-type]  # made from the method
        **kwargs: Any,
    ) -> None:
        """Create the trainer. Raises TypeError, before loading any model, if `args` is not an `FDPOConfig`."""
        config = own_config(FDPOConfig, args, model)
        super().__init__(model, ref_model, config, method=config.method(), **kwargs)
