"""f-DPO as a TRL trainer (arXiv 2309.16240): DPOTrainer with any f-divergence for its score."""

from pathlib import Path
from typing import Any

from trl import DPOConfig
from trl.trainer.utils import get_config_model_id

from alignkit.methods import FDPO
from alignkit.trainers.configs import FDPOConfig
from alignkit.trainers.preference import PreferenceTrainer


class FDPOTrainer(PreferenceTrainer):
    """DPOTrainer whose loss is `losses.f_dpo_loss` under `args.divergence`; rewards are logged as beta s(z).

    Takes DPOTrainer's arguments, with an `FDPOConfig` as `args`, the default one where none is given.
    """

    method: FDPO

    def __init__(self, model: Any = None, ref_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        """Raise TypeError for a `DPOConfig`, before anything is loaded: it does not name the divergence."""
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = FDPOConfig(f"{Path(name).name}-F-DPO")
        if not isinstance(args, FDPOConfig):
            found = type(args).__name__
            of_trl = ", which has the same options and the divergence" if isinstance(args, DPOConfig) else ""
            raise TypeError(f"args: expected an alignkit.trainers.FDPOConfig{of_trl}, found a {found}")
        super().__init__(model, ref_model, args, method=args.method(), **kwargs)
