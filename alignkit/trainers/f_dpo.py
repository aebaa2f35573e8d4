"""f-DPO as a TRL trainer (arXiv 2309.16240): DPOTrainer with any f-divergence for its score."""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from alignkit import divergences
from alignkit.kernels.model_head import fuse_head
from alignkit.losses import PreferenceLoss, f_dpo_loss
from alignkit.trainers.exact_resume import ExactResume
from alignkit.trainers.item_log import ItemLog
from alignkit.trainers.metrics import record_items
from alignkit.trainers.tokenised import TakesTokenised
from alignkit.trainers.whole_steps import WholeRowSteps

_NOT_MODEL_INPUTS = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
_REFUSED_TRL_OPTIONS = {
    "loss_type": (["sigmoid"], "f-DPO is the sigmoid loss; other losses do not cancel the prompt's constant"),
    "f_divergence_type": ("reverse_kl", "use `divergence`, whose scores are stable"),
    "ld_alpha": (None, "it reweights tokens, after which the log-ratio is no longer one of sequences"),
    "use_weighting": (False, "WPO's weights are not defined under an f-divergence"),
}


@dataclass
class FDPOConfig(DPOConfig):
    """DPOConfig plus the choice of f.

    `beta` multiplies f', `label_smoothing` in [0, 0.5) is cDPO's; TRL's options that have no meaning under an
    f-divergence are refused.
    """

    divergence: str = field(
        default="reverse_kl",
        metadata={"help": "A name of alignkit.divergences.available(), or package.module:Name."},
    )
    divergence_params: dict[str, float] | str | None = field(
        default=None, metadata={"help": "Parameters of the divergence, such as {'alpha': 0.3}."}
    )
    match_curvature: bool = field(
        default=False,
        metadata={"help": "Divide beta by f''(1), so that all divergences have the same local strength."},
    )
    robust: bool = field(
        default=False,
        metadata={"help": "Take the bias of label_smoothing off again: robust DPO instead of cDPO."},
    )
    length_normalization: bool = field(
        default=False,
        metadata={"help": "Take log-ratios as means over the answer's tokens instead of sums."},
    )
    sft_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the chosen answer's negative log-likelihood, mean over its tokens."},
    )

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "divergence_params"]  # noqa: RUF012, SLF001 - transformers' protocol

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (required, reason) in _REFUSED_TRL_OPTIONS.items():
            if getattr(self, name) != required:
                raise ValueError(f"{name}={getattr(self, name)!r} is not an option of f-DPO: {reason}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), found {self.label_smoothing}")


class FDPOTrainer(ItemLog, ExactResume, WholeRowSteps, TakesTokenised, DPOTrainer):
    """DPOTrainer whose loss is `losses.f_dpo_loss` under `args.divergence`.

    Data preparation, reference handling (adapter switched off, reference model, or precomputed log-probs) and
    the fused head are TRL's. Rewards are logged as beta s(z); metrics are means over items.
    """

    _tag_names = ["trl", "dpo", "f-dpo", "alignkit"]  # noqa: RUF012 - TRL's protocol

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fuse_heads()
        config: FDPOConfig = self.args
        params = config.divergence_params if isinstance(config.divergence_params, dict) else {}
        self.divergence = divergences.get(config.divergence, **params)
        self.effective_beta = config.beta / (self.divergence.curvature if config.match_curvature else 1.0)
        self._held_out_reference: dict[int, tuple[Tensor, Tensor]] = {}

    def _fuse_heads(self) -> None:
        """Put alignkit's head in TRL's place: completion tokens only, one pass while the head is frozen."""
        policy = self.accelerator.unwrap_model(self.model)
        fuse_head(policy.get_base_model() if is_peft_model(policy) else policy, entropy=True, top1=True)
        if self.ref_model is not None:
            fuse_head(self.accelerator.unwrap_model(self.ref_model))

    def rows_in(self, batch: dict[str, Tensor]) -> int:
        """Pairs: of each the chosen and the rejected answer are in the batch."""
        return len(batch["input_ids"]) // 2

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - TRL's signature
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """This forward's part of the mean over the step's pairs."""
        counted = self.pop_counted(inputs)
        outputs = self._forward(model, inputs)
        mask = inputs["completion_mask"][:, 1:]
        token_logps = outputs.log_probs[:, -mask.size(1) :]
        chosen_logps, rejected_logps = token_logps.float().sum(dim=1).chunk(2)
        ref_chosen_logps, ref_rejected_logps = self._reference_logps(inputs)
        chosen_lengths, rejected_lengths = mask.sum(dim=1).clamp(min=1).chunk(2)
        sums = (chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
        lengths = (chosen_lengths, rejected_lengths) * 2
        preference = f_dpo_loss(
            *(map(torch.div, sums, lengths) if self.args.length_normalization else sums),
            beta=self.effective_beta,
            divergence=self.divergence,
            label_smoothing=self.args.label_smoothing,
            robust=self.args.robust,
        )
        losses = preference.losses
        if self.args.sft_weight:
            losses = losses - self.args.sft_weight * chosen_logps / chosen_lengths
        self._require_finite(losses, inputs)
        columns = self._columns(
            preference, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
        )
        if self._mode == "eval":
            columns["loss"] = losses  # in the place of the mean over batches
        ratios = _token_ratios(outputs, mask)
        record_items(self.accelerator, self._items[self._mode], columns, ratios, counted)
        if self._mode == "train":
            self._total_train_tokens += self._tokens_seen(inputs["attention_mask"], counted)
        loss = losses @ self.shares(len(losses), counted, num_items_in_batch).to(losses)
        return (loss, outputs) if return_outputs else loss

    def _tokens_seen(self, attention_mask: Tensor, counted: Tensor | None) -> int:
        """Of the pairs that count, over all processes."""
        own = (
            attention_mask
            if counted is None
            else attention_mask * counted.to(attention_mask).repeat(2)[:, None]
        )
        return int(self.accelerator.reduce(own.sum()))

    def _forward(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """Per-token log-probs of the labels, computed inside the model's forward (ZeRO-3 gathers the head there)."""
        model_inputs = {name: value for name, value in inputs.items() if name not in _NOT_MODEL_INPUTS}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        return model(**model_inputs, labels=labels, use_cache=False, fused_lm_head=True)

    def _reference_logps(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.precompute_ref_logps:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        reference = self.model if self.ref_model is None else self.ref_model
        shared = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self._mode == "train" or shared or self.args.sync_ref_model:
            chosen, rejected = self.compute_ref_log_probs(reference, inputs)
            return chosen, rejected
        # Held-out batches come again at every evaluation. Not where the forward is a collective: a rank that finds
        # its batch would leave the others waiting.
        key = hash((_bytes(inputs["input_ids"]), _bytes(inputs["completion_mask"])))
        if key not in self._held_out_reference:
            self._held_out_reference[key] = self.compute_ref_log_probs(reference, inputs)
        return self._held_out_reference[key]

    @staticmethod
    def _columns(
        preference: PreferenceLoss,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
    ) -> dict[str, Tensor]:
        margins = preference.chosen_rewards - preference.rejected_rewards
        return {
            "rewards/chosen": preference.chosen_rewards,
            "rewards/rejected": preference.rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": chosen_logps,
            "logps/rejected": rejected_logps,
            "logratios/chosen": chosen_logps - ref_chosen_logps,
            "logratios/rejected": rejected_logps - ref_rejected_logps,
        }


def _token_ratios(outputs: Any, mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each pair [B], over how many tokens: entropy, and top-1 accuracy over the chosen answer's."""
    length = mask.size(1)
    entropies = (outputs.entropy[:, -length:] * mask).sum(dim=1).chunk(2)
    chosen_tokens, rejected_tokens = mask.sum(dim=1).chunk(2)
    right = (outputs.is_top1[:, -length:] & mask.bool()).sum(dim=1).chunk(2)[0]
    return {
        "entropy": (entropies[0] + entropies[1], chosen_tokens + rejected_tokens),
        "mean_token_accuracy": (right, chosen_tokens),
    }


def _bytes(values: Tensor) -> bytes:
    return values.cpu().numpy().tobytes()
