"""f-DPO as a TRL trainer (arXiv 2309.16240): DPOTrainer with any f-divergence."""

from typing import Any

from alignkit.methods import FDPO
from alignkit.trainers.configs import FDPOConfig, own_config
from alignkit.trainers.preference import PreferenceTrainer


class FDPOTrainer(PreferenceTrainer):
    """DPOTrainer whose loss is `losses.f_dpo_loss` with `args.divergence`. Logged rewards are beta s(z).

    Takes DPOTrainer's arguments. `args` is an `FDPOConfig`; None means the defaults.
    """

    method: FDPO

    def __init__(self, model: Any = None, ref_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        """Create the trainer. Raises TypeError, before loading any model, if `args` is not an `FDPOConfig`."""
        config = own_config(FDPOConfig, args, model)
        super().__init__(model, ref_model, config, method=config.method(), **kwargs)
