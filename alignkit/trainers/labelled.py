"""A TRL trainer for labelled rows: KTOTrainer with the loss of any `LabelledMethod` and an exact baseline.

The baseline of a step is measured before its first backward, when the Trainer has fetched all of its micro-batches.
The policy and the reference score the mismatched answers without gradient and without dropout. The baseline is one
mean of the log-ratios over all micro-batches and processes. TRL uses the mean of each micro-batch instead, so that
its loss depends on how a step is split. In an evaluation the baseline is the mean over all held-out rows, and the
losses are computed after all rows are scored.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import KTOConfig, KTOTrainer

from alignkit.data.tokens import IGNORED, TokenSequence
from alignkit.errors import DataError
from alignkit.losses import LabelledLogps, LabelledLoss
from alignkit.methods import LabelledMethod
from alignkit.run.reference_store import ReferenceStore
from alignkit.terms import Term
from alignkit.trainers.base import AlignTrainer
from alignkit.trainers.configs import Refused, default_folder, refuse_options
from alignkit.trainers.metrics import gather_rows, record_items
from alignkit.trainers.mismatched import with_mismatched
from alignkit.trainers.reference_scores import ReferenceScores
from alignkit.trainers.signature import Model, shows_parameters_of
from alignkit.trainers.stored_references import StoredReferences, collated
from alignkit.trainers.tokenised import columns_of, refuse_streams
from alignkit.trainers.upstream import no_reference_model
from alignkit.trainers.whole_steps import IS_REAL, WholeRowSteps

LABELLED_IDS = frozenset({"prompt_ids", "completion_ids", "label"})
"""TRL's columns of a tokenised labelled answer, as `alignkit.data.tokenise` makes them."""
_OF_THE_METHOD = "give it to the method"
REFUSED_TRL_OPTIONS: Refused = {
    "loss_type": ("kto", "the loss is the method's own"),
    "beta": (0.1, _OF_THE_METHOD),
    "desirable_weight": (1.0, _OF_THE_METHOD),
    "undesirable_weight": (1.0, _OF_THE_METHOD),
    "precompute_ref_log_probs": (False, "the mismatched answers need reference log-probs too"),
}
"""KTOConfig options that would be ignored -> (value that each must keep, reason)."""


class LabelledTrainer(AlignTrainer, WholeRowSteps, StoredReferences, ReferenceScores, KTOTrainer):
    """KTOTrainer whose loss is `method.loss`, averaged over the answers of the whole optimizer step.

    Data preparation, reference handling (disabled adapter or reference model) and the collator are TRL's. Rows may
    come in any order, so `train_sampling_strategy="random"` is allowed, and so is a micro-batch of one row. A dataset
    with TRL's tokenised columns is used unchanged. Its column KL_completion_ids, if present, holds the mismatched
    answers. The method's options are its own fields; it reads none from `args`.
    """

    @shows_parameters_of(KTOTrainer)
    def __init__(
        self,
        model: Model | None = None,
        ref_model: PreTrainedModel | None = None,
        args: KTOConfig | None = None,
        *,
        method: LabelledMethod,
        terms: Sequence[Term] = (),
        references: ReferenceStore | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the trainer with KTOTrainer's arguments and parameter terms.

        With `references`, all answers are scored under the reference here, once, and the scores are stored there.
        Raises ValueError for TRL options that would be ignored, and DataError, before loading a model, for a stream.
        """
        refuse_streams(kwargs, "mismatched answers need all rows")
        self.method = method
        self._tag_names = ["trl", *dict.fromkeys(["kto", method.type.replace("_", "-")]), "alignkit"]
        if args is None:
            args = KTOConfig(default_folder(model, "kto"), train_sampling_strategy="random")
        refuse_options(args, REFUSED_TRL_OPTIONS, method.type)
        args = copy.copy(args)
        args.loss_type = (
            "apo_zero_unpaired"  # makes TRL skip its own baseline and that baseline's demands on batches
        )
        with no_reference_model(model) if references is not None and ref_model is None else nullcontext():
            super().__init__(model, ref_model, args, **kwargs)
        args.loss_type = "kto"
        self.fuse_heads()
        if references is not None:
            self.use_store(references)
        self._baseline: Tensor | None = None
        self._held_out: list[Tensor] = []
        self.use_terms(terms, None)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Tokenise the dataset and add mismatched answers. Raises DataError for a dataset of another kind."""
        if isinstance(dataset, IterableDataset):
            raise DataError(
                f"{dataset_name} dataset: expected a Dataset, found a stream; mismatched answers need all rows"
            )
        columns = columns_of(dataset)
        if not columns >= LABELLED_IDS:
            if not (columns >= {"completion", "label"} or columns >= {"chosen", "rejected"}):
                raise DataError(
                    f"{dataset_name} dataset: expected the columns prompt, completion and label, or chosen and "
                    f"rejected, or {', '.join(sorted(LABELLED_IDS))}; found {', '.join(sorted(columns)) or 'none'}"
                )
            # not under the name "train": TRL would then check label weights that are not the method's
            dataset = super()._prepare_dataset(dataset, processing_class, args, f"{dataset_name} rows")
        if dataset_name == "train":
            _require_both(dataset["label"])
        return with_mismatched(dataset, args.seed)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of a step as the Trainer does, and measure the step's baseline over their rows."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._baseline = self._measure_baseline([self._prepare_inputs(batch) for batch in batches])
        return batches, count

    def _measure_baseline(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """max(0, mean log-ratio of the mismatched answers) over all processes, without padding rows."""
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for batch in batches:
            ratios = self._mismatched_ratios(self._scorer, batch).double()
            is_real = batch.get(IS_REAL, torch.ones_like(ratios)).to(ratios)
            total += torch.stack([(ratios * is_real).sum(), is_real.sum()])
        summed, rows = self.accelerator.reduce(total).unbind()
        return (summed / rows).clamp(min=0).float()

    @property
    def _scorer(self) -> Any:
        """The module for a forward without gradient: the engine under DeepSpeed, else the model without DDP."""
        return self.model_wrapped if self.is_deepspeed_enabled else self.model

    def _mismatched_ratios(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """[B], policy-to-reference log-ratios of the mismatched answers, without gradient and dropout."""
        sequences = {name[3:]: value for name, value in inputs.items() if name.startswith("KL_")}
        held_out = self._mode == "eval"
        with _scoring(model), self.accelerator.autocast():
            logps = _summed(_forward(model, sequences))
        if self._store is not None:
            return logps - inputs["ref_KL_logps"]
        return logps - self._reference_logps(sequences, held_out=held_out)

    def _reference_logps(self, sequences: Mapping[str, Tensor], *, held_out: bool) -> Tensor:
        """[B], log-probs of the answers under the reference."""
        if self._store is not None:
            return sequences["ref_logps"]
        return self.score_reference(sequences, held_out=held_out)[0].float()

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:  # noqa: ARG002 - TRL's hook
        """Score a dataset given to `evaluate`; TRL calls this only with a store."""
        return self.with_references(dataset)

    def scored_sequences(self, batch: dict[str, Any]) -> dict[str, TokenSequence]:
        """Return the answer and the mismatched answer of a batch of one row, by TRL's columns."""
        return {"ref_logps": collated(batch)[0], "ref_KL_logps": collated(batch, "KL_")[0]}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - TRL's signature
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute this forward's share of the mean over the step's answers. For a held-out batch it is not logged."""
        is_real = self.pop_is_real(inputs)
        held_out = self._mode == "eval"
        mismatched = self._mismatched_ratios(model, inputs) if held_out else None
        baseline = self._baseline
        if mismatched is not None:
            baseline = mismatched.mean().clamp(min=0)
        elif num_items_in_batch is None or baseline is None:  # the step is this forward alone
            baseline = self._measure_baseline([inputs])
        outputs = _forward(model, inputs)
        mask = inputs["completion_mask"][:, 1:]
        rows = LabelledLogps(
            _summed(outputs),
            self._reference_logps(inputs, held_out=held_out),
            inputs["label"].bool(),
            mask.sum(dim=1).clamp(min=1),
            baseline,
        )
        found = self.method.loss(rows)
        self._require_finite(found.losses, inputs)
        sums = _token_sums(outputs, mask)
        if mismatched is not None:
            columns = torch.stack([*rows[:4], mismatched, *sums], dim=1)
            self._held_out.append(gather_rows(self.accelerator, columns.detach(), None))
        else:
            record_items(self.accelerator, self._items["train"], *_metrics(rows, found, *sums), is_real)
            self.count_tokens(self._tokens_seen(inputs["attention_mask"], is_real))
        row_weights = self.row_weights(len(found.losses), is_real, num_items_in_batch).to(found.losses)
        loss = found.losses @ row_weights + self.weight_loss(row_weights.sum())
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does, then log the losses of all held-out rows under their common baseline."""
        self._held_out = []
        output = super().evaluation_loop(*args, **kwargs)
        if self._held_out:
            self._record_held_out(torch.cat(self._held_out))
        return output

    def _record_held_out(self, columns: Tensor) -> None:
        logps, ref_logps, desirable, tokens, mismatched, entropy, right = columns.unbind(dim=1)
        baseline = mismatched.double().mean().clamp(min=0).float()
        rows = LabelledLogps(logps, ref_logps, desirable.bool(), tokens, baseline)
        found = self.method.loss(rows)
        values, ratios = _metrics(rows, found, entropy, right)
        items = self._items["eval"]
        for name, value in {**values, "loss": found.losses}.items():
            items.add(name, value)
        for name, (above, below) in ratios.items():
            items.add_ratio(name, float(above.double().sum()), float(below.double().sum()))

    def _tokens_seen(self, attention_mask: Tensor, is_real: Tensor | None) -> int:
        """Tokens of the rows over all processes, without padding rows and mismatched answers."""
        rows = attention_mask.sum(dim=1)
        return int(self.accelerator.reduce((rows if is_real is None else rows * is_real.to(rows)).sum()))


def _require_both(labels: Any) -> None:
    """Raise DataError unless there are both desirable and undesirable answers."""
    found = {bool(label) for label in labels}
    if len(found) < 2:
        kind = "desirable" if True in found else "undesirable"
        raise DataError(f"train dataset: expected desirable and undesirable answers, found only {kind} ones")


@contextmanager
def _scoring(model: Any) -> Iterator[None]:
    """Switch gradient and dropout off for the duration. Random states do not change."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _forward(model: Any, sequences: Mapping[str, Tensor]) -> Any:
    """Per-token log-probs of the answers, computed inside the model's forward, where ZeRO-3 gathers the head.

    `fused_lm_head=True` selects the forward that `kernels.model_head.fuse_head` installed on the model.
    """
    labels = sequences["input_ids"].masked_fill(sequences["completion_mask"] == 0, IGNORED)
    return model(
        input_ids=sequences["input_ids"],
        attention_mask=sequences["attention_mask"],
        labels=labels,
        use_cache=False,
        fused_lm_head=True,
    )


def _summed(outputs: Any) -> Tensor:
    """[B], log-probs of the answers, summed over their tokens."""
    logps: Tensor = outputs.log_probs.float().sum(dim=1)
    return logps


def _token_sums(outputs: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(entropy in nats, number of tokens with the highest probability), [B] each, summed over the answer's tokens."""
    length = mask.size(1)
    entropy = (outputs.entropy[:, -length:] * mask).sum(dim=1)
    right = (outputs.is_top1[:, -length:] & mask.bool()).sum(dim=1)
    return entropy, right


def _metrics(
    rows: LabelledLogps, found: LabelledLoss, entropy: Tensor, right: Tensor
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """(values [B] per answer, (numerator, denominator) [B] of means over one label's answers or over tokens)."""
    ratios = (rows.logps - rows.ref_logps).detach()
    values = {
        "kl": rows.baseline.expand_as(ratios),
        "rewards/accuracies": ((ratios > rows.baseline) == rows.desirable).float(),
    }
    means = {}
    for side, mask in (("chosen", rows.desirable.float()), ("rejected", 1 - rows.desirable.float())):
        means[f"rewards/{side}"] = (found.rewards * mask, mask)
        means[f"logps/{side}"] = (rows.logps.detach() * mask, mask)
        means[f"logratios/{side}"] = (ratios * mask, mask)
    means["entropy"] = (entropy, rows.tokens)
    means["mean_token_accuracy"] = (right * rows.desirable, rows.tokens * rows.desirable)
    return values, means
