"""A TRL trainer for preference pairs: DPOTrainer with the loss of any `PairMethod`."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from alignkit.adapter_sections import TuneSection
from alignkit.data.flipping import FLIPPED
from alignkit.data.rows.recognise import GROUP
from alignkit.data.tokens import TokenSequence
from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods import PairMethod
from alignkit.run.reference_store import ReferenceStore
from alignkit.terms import RowView, Term
from alignkit.trainers.balance import RouterBalance
from alignkit.trainers.base import AlignTrainer
from alignkit.trainers.configs import REFUSED_OF_PAIRS, refuse_options, require_config
from alignkit.trainers.metrics import GROUP_OF_ITEM, record_items
from alignkit.trainers.reference_scores import ReferenceScores
from alignkit.trainers.signature import Model, shows_parameters_of
from alignkit.trainers.stored_references import StoredReferences, collated
from alignkit.trainers.terms import ROW, RowFacts
from alignkit.trainers.tokenised import TakesTokenised
from alignkit.trainers.tuning import TunesOptions
from alignkit.trainers.upstream import no_reference_model
from alignkit.trainers.whole_steps import WholeRowSteps

_NOT_MODEL_INPUTS = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}


class PreferenceTrainer(
    TunesOptions,
    AlignTrainer,
    RouterBalance,
    WholeRowSteps,
    StoredReferences,
    ReferenceScores,
    TakesTokenised,
    DPOTrainer,
):
    """DPOTrainer whose loss is `method.loss`, averaged over the pairs of the whole optimizer step.

    Data preparation and reference handling (disabled adapter, reference model, or precomputed log-probs) are TRL's. A
    method without a reference loads and runs none. Metrics are means over pairs. The method's options are its own
    fields; it reads none from `args`.
    """

    @shows_parameters_of(DPOTrainer)
    def __init__(
        self,
        model: Model | None = None,
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        *,
        method: PairMethod,
        terms: Sequence[Term] = (),
        tune: TuneSection | None = None,
        references: ReferenceStore | None = None,
        packing: bool | None = False,
        **kwargs: Any,
    ) -> None:
        """Create the trainer with DPOTrainer's arguments. `terms` add to the method's loss in training. `tune`
        names options of the method that move by the held-out loss.

        With `references`, all answers are scored under the reference here, once, and the scores are stored there.
        `packing` True or None packs them where the model can; `use_packing` does so in training.
        Before loading any model, raises TypeError if `args` is not a `DPOConfig`, and ValueError for TRL options that
        would be ignored.
        """
        self.method = method
        self._tag_names = ["trl", "dpo", method.type.replace("_", "-"), "alignkit"]
        if args is not None:
            require_config(args, DPOConfig)
        refuse_options(args, REFUSED_OF_PAIRS, method.type)
        if not method.uses_reference and ref_model is not None:
            raise ValueError(f"ref_model is given, but {method.type} has no reference; leave it out")
        stored = references if method.uses_reference else None
        loads_one = method.uses_reference and (stored is None or ref_model is not None)
        with nullcontext() if loads_one else no_reference_model(model):
            super().__init__(model, ref_model, args, **kwargs)
        self.fuse_heads()
        if stored is not None:
            if packing is not False and tune is None:
                self.use_packing()
            self.use_store(stored)
        self.use_terms(terms, method.start_loss())
        self.use_tuning(tune, self.model)
        self.mark_rows(always=tune is not None)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW not in self._signature_columns:
            self._signature_columns += [ROW, GROUP, FLIPPED]

    def rows_in(self, batch: dict[str, Tensor]) -> int:
        """Return the number of pairs. The batch holds both answers of each."""
        return len(batch["input_ids"]) // 2

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - TRL's signature
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute this forward's share of the mean over the step's pairs."""
        is_real, facts = self.pop_is_real(inputs), self.pop_facts(inputs)
        method = self._method_of(facts)
        outputs = self._forward(model, inputs)
        mask = inputs["completion_mask"][:, 1:]
        pairs = self._pairs(outputs, mask, inputs)
        preference = method.loss(pairs)
        losses = preference.losses
        self._require_finite(losses, inputs)
        columns = _columns(preference, pairs)
        if self._mode == "eval":
            columns["loss"] = losses  # replaces the Trainer's mean over batches
        ratios = _token_ratios(outputs, mask)
        if facts is not None and facts.flipped is not None:
            ratios |= facts.probe(columns["rewards/margins"])
        if facts is not None and self._mode == "eval":
            columns[GROUP_OF_ITEM] = facts.groups
            accuracy = {"accuracy": columns["rewards/accuracies"], "margin": columns["rewards/margins"]}
            ratios |= facts.of_groups(self.group_names, accuracy)
        record_items(self.accelerator, self._items[self._mode], columns, ratios, is_real)
        if self._mode == "train":
            self.count_tokens(self._tokens_seen(inputs["attention_mask"], is_real))
        row_weights = self.row_weights(len(losses), is_real, num_items_in_batch).to(losses)
        losses = self._with_terms(preference, facts, is_real)
        loss = losses @ row_weights + self.balance_loss(outputs, row_weights.sum())
        loss = loss + self.weight_loss(row_weights.sum())
        return (loss, outputs) if return_outputs else loss

    def _method_of(self, facts: RowFacts | None) -> PairMethod:
        """The method of a forward: with its tuned options perturbed in training, else as it is."""
        if self.tuner is None or self._mode == "eval" or facts is None or facts.rows is None:
            return self.method
        return self.tuner.perturbed(self.state.global_step, facts.rows)

    def pair_losses(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        """Losses [B] of held-out rows, differentiable, with the method as it is."""
        inputs = self._prepare_inputs(self.data_collator(list(rows)))
        self.pop_facts(inputs)
        with self.compute_loss_context_manager():
            outputs = self._forward(self.model, inputs)
            return self.method.loss(self._pairs(outputs, inputs["completion_mask"][:, 1:], inputs)).losses

    def _with_terms(
        self, preference: PreferenceLoss, facts: RowFacts | None, is_real: Tensor | None
    ) -> Tensor:
        """[B], losses with the row terms applied. Evaluations apply none, so that held-out losses stay comparable."""
        losses = preference.losses
        if self.row_terms is None or is_real is None or facts is None or facts.rows is None:
            return losses
        chosen, rejected = preference.rewards or (preference.chosen_rewards, preference.rejected_rewards)
        view = RowView(losses, facts.rows, facts.groups, chosen - rejected, chosen, rejected)
        weights, extra = self.row_terms.apply(view, is_real)
        return weights * losses + extra

    def _pairs(self, outputs: Any, mask: Tensor, inputs: dict[str, Tensor]) -> PairLogps:
        """Log-probs of the batch's pairs under policy and reference."""
        chosen, rejected = outputs.log_probs[:, -mask.size(1) :].float().sum(dim=1).chunk(2)
        reference: Any = self._reference_logps(inputs) if self.method.uses_reference else (None, None)
        chosen_tokens, rejected_tokens = mask.sum(dim=1).clamp(min=1).chunk(2)
        return PairLogps(chosen, rejected, reference[0], reference[1], chosen_tokens, rejected_tokens)

    def _tokens_seen(self, attention_mask: Tensor, is_real: Tensor | None) -> int:
        """Tokens of the pairs over all processes, without padding rows."""
        own = (
            attention_mask
            if is_real is None
            else attention_mask * is_real.to(attention_mask).repeat(2)[:, None]
        )
        return int(self.accelerator.reduce(own.sum()))

    def _forward(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """Per-token log-probs of the labels, computed inside the model's forward, where ZeRO-3 gathers the head.

        `fused_lm_head=True` selects the forward that `kernels.model_head.fuse_head` installed on the model.
        """
        model_inputs = {name: value for name, value in inputs.items() if name not in _NOT_MODEL_INPUTS}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        model_inputs |= self.router_inputs()
        return model(**model_inputs, labels=labels, use_cache=False, fused_lm_head=True)

    def _reference_logps(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        if self.precompute_ref_logps:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        return self.score_reference(inputs, held_out=self._mode == "eval")

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Precompute from the store if there is one, else as TRL does. A method without a reference needs nothing."""
        if not self.method.uses_reference:
            return dataset
        if self._store is not None:
            return self.with_references(dataset)
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def scored_sequences(self, batch: dict[str, Any]) -> dict[str, TokenSequence]:
        """Return both answers of a batch of one pair, by TRL's columns."""
        return dict(zip(("ref_chosen_logps", "ref_rejected_logps"), collated(batch), strict=True))


def _columns(preference: PreferenceLoss, pairs: PairLogps) -> dict[str, Tensor]:
    """Metrics of each pair [B], with log-ratios if there is a reference."""
    margins = preference.chosen_rewards - preference.rejected_rewards
    columns = {
        "rewards/chosen": preference.chosen_rewards,
        "rewards/rejected": preference.rejected_rewards,
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).float(),
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
    }
    if pairs.ref_chosen is not None:
        columns["logratios/chosen"] = pairs.chosen - pairs.ref_chosen
        columns["logratios/rejected"] = pairs.rejected - pairs.ref_rejected
    return columns


def _token_ratios(outputs: Any, mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, tokens) [B] of each pair: entropy over both answers, top-1 accuracy over the chosen answer."""
    length = mask.size(1)
    entropies = (outputs.entropy[:, -length:] * mask).sum(dim=1).chunk(2)
    chosen_tokens, rejected_tokens = mask.sum(dim=1).chunk(2)
    right = (outputs.is_top1[:, -length:] & mask.bool()).sum(dim=1).chunk(2)[0]
    return {
        "entropy": (entropies[0] + entropies[1], chosen_tokens + rejected_tokens),
        "mean_token_accuracy": (right, chosen_tokens),
    }
