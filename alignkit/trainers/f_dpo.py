"""f-DPO as a TRL trainer (arXiv 2309.16240): DPOTrainer with any f-divergence for its score."""

from typing import Any

from alignkit.methods import FDPO
from alignkit.trainers.configs import FDPOConfig, own_config
from alignkit.trainers.preference import PreferenceTrainer


class FDPOTrainer(PreferenceTrainer):
    """DPOTrainer whose loss is `losses.f_dpo_loss` under `args.divergence`; rewards are logged as beta s(z).

    Takes DPOTrainer's arguments, with an `FDPOConfig` as `args`, the default one where none is given.
    """

    method: FDPO

    def __init__(self, model: Any = None, ref_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        """Raise TypeError for a `DPOConfig`, before anything is loaded: it does not name the divergence."""
        config = own_config(FDPOConfig, args, model)
        super().__init__(model, ref_model, config, method=config.method(), **kwargs)
