"""Supervised fine-tuning as a TRL trainer: SFTTrainer with alignkit's fused head."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from alignkit.data.tokens import IGNORED
from alignkit.kernels.model_head import fuse_head
from alignkit.losses import TokenLogps
from alignkit.methods import CompletionMethod, Supervised
from alignkit.models.adapters import keep_start
from alignkit.terms import Term
from alignkit.trainers.balance import RouterBalance
from alignkit.trainers.base import AlignTrainer
from alignkit.trainers.configs import require_config
from alignkit.trainers.metrics import gather_rows
from alignkit.trainers.signature import Model, shows_parameters_of
from alignkit.trainers.tokenised import require_completions


class SupervisedTrainer(AlignTrainer, RouterBalance, SFTTrainer):
    """SFTTrainer whose loss is `method.loss`. The default is the mean negative log-likelihood in nats,

        L = -sum_t log pi(y_t | y_<t) / T,     T: loss tokens of the whole optimizer step, over all processes.

    So the split of a step into forwards and processes does not matter. Evaluation loss, accuracy and entropy are
    means over tokens too, where TRL averages batches. Raises ValueError for TRL options that it does not support.
    """

    @shows_parameters_of(SFTTrainer, "compute_loss_func", "compute_metrics")
    def __init__(
        self,
        model: Model | None = None,
        args: SFTConfig | TrainingArguments | None = None,
        *,
        method: CompletionMethod | None = None,
        terms: Sequence[Term] = (),
        **kwargs: Any,
    ) -> None:
        """Create the trainer with SFTTrainer's arguments, a method, by default `Supervised`, and parameter terms.

        Raises TypeError, before loading any model, if `args` is another trainer's configuration, and
        DataError if SFTTrainer cannot read a dataset's columns.
        """
        if args is not None and type(args) is not TrainingArguments:
            require_config(args, SFTConfig)
        self.method = method or Supervised()
        self._tag_names = ["trl", "sft", self.method.type.replace("_", "-"), "alignkit"]
        require_completions(args, kwargs)
        if is_peft_model(model):
            keep_start(model)
        super().__init__(model, args, **kwargs)
        self._refuse_options()
        policy = self.accelerator.unwrap_model(self.model)
        fuse_head(policy.get_base_model() if is_peft_model(policy) else policy, entropy=True, top1=True)
        self.use_terms(terms, None)

    def _refuse_options(self) -> None:
        refused = {
            "loss_type other than 'nll'": self.args.loss_type != "nll",
            "label_smoothing_factor": self.args.label_smoothing_factor > 0,
            "compute_loss_func": self.compute_loss_func is not None,
            "compute_metrics": self.compute_metrics is not None,  # it needs the logits
        }
        if names := [name for name, given in refused.items() if given]:
            raise ValueError(f"SupervisedTrainer does not support {', '.join(names)}")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - TRL's signature
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute this forward's loss. `num_items_in_batch` is T, or None if the step has only this forward."""
        is_real = self.pop_is_real(inputs)
        loss_mask = inputs["labels"][:, 1:] != IGNORED
        outputs, losses = self._losses(model, inputs, loss_mask)
        self._require_finite(losses, inputs)
        self._record(outputs, losses, loss_mask, inputs, is_real)
        tokens = loss_mask.sum() if num_items_in_batch is None else num_items_in_batch
        tokens = torch.as_tensor(tokens, device=losses.device).clamp(min=1)
        share = loss_mask.sum() / tokens
        loss = losses.sum() / tokens + self.balance_loss(outputs, share) + self.weight_loss(share)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # T counts every process's tokens, and gradients are averaged over processes, not summed
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def _losses(self, model: Any, inputs: dict[str, Tensor], loss_mask: Tensor) -> tuple[Any, Tensor]:
        """(outputs of the model, losses [B]). The outputs have `entropy`, `is_top1` and `aux_loss`."""
        # inside the forward, where ZeRO-3 gathers the head
        outputs = model(**inputs, **self.router_inputs(), fused_lm_head=True)
        return outputs, self.method.loss(TokenLogps(outputs.log_probs.float(), loss_mask)).losses

    def _sums(self, _outputs: Any) -> dict[str, Tensor]:
        """Further metrics of this forward: name -> sum over each row's loss tokens, [B]."""
        return {}

    def _record(
        self,
        outputs: Any,
        losses: Tensor,
        loss_mask: Tensor,
        inputs: dict[str, Tensor],
        is_real: Tensor | None,
    ) -> None:
        """Record sums over tokens. They are gathered per row, which drops padding rows."""
        seen = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum(dim=1)
        further = self._sums(outputs)
        columns = [losses, outputs.entropy.sum(dim=1), outputs.is_top1.sum(dim=1), loss_mask.sum(dim=1), seen]
        columns += further.values()
        rows = torch.stack([column.detach().double() for column in columns], dim=1)
        loss, entropy, right, tokens, everything, *sums = (
            gather_rows(self.accelerator, rows, is_real).sum(dim=0).tolist()
        )
        items = self._items[self._mode]
        items.add_ratio("entropy", entropy, tokens)
        items.add_ratio("mean_token_accuracy", right, tokens)
        for name, total in zip(further, sums, strict=True):
            items.add_ratio(name, total, tokens)
        if self._mode == "train":
            self.count_tokens(int(everything))
        else:
            items.add_ratio("loss", loss, tokens)  # replaces the Trainer's mean over batches
