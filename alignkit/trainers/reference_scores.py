"""Scores of a TRL trainer's reference model, and fused heads on both of its models."""

from collections.abc import Mapping
from typing import Any

from accelerate.utils import is_peft_model
from torch import Tensor

from alignkit.kernels.model_head import fuse_head
from alignkit.trainers.packing import PacksBatches


class ReferenceScores(PacksBatches):
    """Mixin before a TRL trainer with a policy and, unless the method has none, a reference."""

    def fuse_heads(self) -> None:
        """Replace TRL's heads by alignkit's fused head, which skips prompt tokens."""
        trainer: Any = self
        policy = trainer.accelerator.unwrap_model(trainer.model)
        fuse_head(policy.get_base_model() if is_peft_model(policy) else policy, entropy=True, top1=True)
        if trainer.ref_model is not None:
            fuse_head(trainer.accelerator.unwrap_model(trainer.ref_model))

    def score_reference(self, inputs: Mapping[str, Tensor], *, held_out: bool) -> tuple[Tensor, ...]:
        """TRL's `compute_ref_log_probs`, a tuple of log-probs [B]. Those of held-out batches are cached."""
        trainer: Any = self
        reference = trainer.model if trainer.ref_model is None else trainer.ref_model
        is_sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        if not held_out or is_sharded or trainer.args.sync_ref_model:
            scores: tuple[Tensor, ...] = trainer.compute_ref_log_probs(reference, inputs)
            return scores
        # Held-out batches return at every evaluation. A sharded model does not cache: its forward is collective, and
        # a rank that finds its batch in the cache would leave the others waiting.
        cache: dict[int, tuple[Tensor, ...]] = self.__dict__.setdefault("_held_out_scores", {})
        key = hash(tuple(inputs[name].cpu().numpy().tobytes() for name in ("input_ids", "completion_mask")))
        if key not in cache:
            cache[key] = trainer.compute_ref_log_probs(reference, inputs)
        return cache[key]
