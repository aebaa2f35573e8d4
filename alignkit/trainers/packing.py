"""Packing of a trainer's batches, where its models and its loss allow it."""

from typing import Any

from accelerate.utils import is_peft_model

from alignkit.errors import ModelError
from alignkit.packing import pack
from alignkit.sharding import SHARES_WEIGHTS, sharding


class PacksBatches:
    """Mixin before a TRL trainer with fused heads on its policy and, if it has one, its reference."""

    def use_packing(self, *, wanted: bool | None = None) -> str | None:
        """Pack the batches of policy and reference where that costs less; see `alignkit.packing`.

        Returns why they are not packed, or None if they are. Raises ModelError if `wanted` is true and they cannot
        be. Sharded weights and a loss that balances routers are not packed.
        """
        trainer: Any = self
        policy = trainer.accelerator.unwrap_model(trainer.model)
        models = [policy.get_base_model() if is_peft_model(policy) else policy]
        if trainer.ref_model is not None:
            models.append(trainer.accelerator.unwrap_model(trainer.ref_model))
        reason = None
        if hasattr(trainer, "balance_loss") and trainer.aux_loss_enabled:
            reason = "the balance loss of its routers counts each token of the padded batch"
        elif sharding() in SHARES_WEIGHTS:
            reason = "its weights are shared among processes"
        elif getattr(trainer, "tuner", None) is not None:
            reason = "tuned options change the adapter for each answer of a padded batch"
        if reason is not None and wanted is True:
            raise ModelError(
                f"training.packing: {type(models[0]).__name__} cannot train on packed rows: {reason}"
            )
        with trainer.accelerator.autocast():
            for model in models:
                reason = reason or pack(model, wanted=wanted)
        if reason is not None:
            for model in models:
                pack(model, wanted=False)
        return reason
