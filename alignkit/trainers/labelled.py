"""Labelled rows as a TRL trainer: KTOTrainer with the loss of any `LabelledMethod` and an exact baseline.

The baseline of a step is measured before its first backward, when the Trainer has taken all its micro-batches: the
policy and the reference score the mismatched answers without gradient and without dropout, and the log-ratios of all
micro-batches and processes give one mean. TRL takes the mean of each micro-batch instead, so that its loss depends on
how a step is split. In an evaluation the baseline is that of all held-out rows: losses are made when all are scored.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import IterableDataset
from torch import Tensor
from trl import KTOConfig, KTOTrainer

from alignkit.data.tokens import IGNORED
from alignkit.errors import DataError
from alignkit.kernels.model_head import fuse_head
from alignkit.losses import LabelledLogps, LabelledLoss
from alignkit.methods import LabelledMethod
from alignkit.trainers.base import AlignTrainer
from alignkit.trainers.configs import Refused, default_folder, refuse_options
from alignkit.trainers.metrics import gather_rows, record_items
from alignkit.trainers.mismatched import with_mismatched
from alignkit.trainers.tokenised import columns_of
from alignkit.trainers.whole_steps import COUNTED, WholeRowSteps

LABELLED_IDS = frozenset({"prompt_ids", "completion_ids", "label"})
"""TRL's tokenised columns of a labelled answer, which `alignkit.data.tokenise` makes."""
_OF_THE_METHOD = "give it to the method"
REFUSED_TRL_OPTIONS: Refused = {
    "loss_type": ("kto", "the loss is the method's own"),
    "beta": (0.1, _OF_THE_METHOD),
    "desirable_weight": (1.0, _OF_THE_METHOD),
    "undesirable_weight": (1.0, _OF_THE_METHOD),
    "precompute_ref_log_probs": (False, "the mismatched answers would have none"),
}
"""Options of KTOConfig that would be ignored: the value each must keep, and why."""


class LabelledTrainer(AlignTrainer, WholeRowSteps, KTOTrainer):
    """KTOTrainer whose loss is `method.loss`, the mean over the answers of a whole optimizer step.

    Data preparation, reference handling (adapter switched off, or a reference model) and the collator are TRL's. Rows
    may come in any order: `train_sampling_strategy="random"` is sound, as is a micro-batch of one row. A dataset
    with TRL's tokenised columns is trained as it is; its column KL_completion_ids, if it has one, gives the
    mismatched answers. Of `args` the method reads nothing: its options are its own.
    """

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        args: KTOConfig | None = None,
        *,
        method: LabelledMethod,
        **kwargs: Any,
    ) -> None:
        """Take `KTOTrainer`'s arguments and the method. Raises ValueError for options that have no meaning here."""
        self.method = method
        self._tag_names = ["trl", *dict.fromkeys(["kto", method.type.replace("_", "-")]), "alignkit"]
        if args is None:
            args = KTOConfig(default_folder(model, "kto"), train_sampling_strategy="random")
        refuse_options(args, REFUSED_TRL_OPTIONS, method.type)
        args = copy.copy(args)
        args.loss_type = (
            "apo_zero_unpaired"  # so that TRL leaves out its own baseline, and its demands on batches
        )
        super().__init__(model, ref_model, args, **kwargs)
        args.loss_type = "kto"
        self._fuse_heads()
        self._baseline: Tensor | None = None
        self._held_out: list[Tensor] = []
        self._held_out_reference: dict[int, Tensor] = {}

    def _fuse_heads(self) -> None:
        """Put alignkit's head in TRL's place: completion tokens only, one pass while the head is frozen."""
        policy = self.accelerator.unwrap_model(self.model)
        fuse_head(policy.get_base_model() if is_peft_model(policy) else policy, entropy=True, top1=True)
        if self.ref_model is not None:
            fuse_head(self.accelerator.unwrap_model(self.ref_model))

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """The dataset in token ids, with mismatched answers; raises DataError where it cannot be trained on."""
        if isinstance(dataset, IterableDataset):
            raise DataError(
                f"{dataset_name} dataset: expected a Dataset, found a stream: mismatched answers come from all rows"
            )
        columns = columns_of(dataset)
        if not columns >= LABELLED_IDS:
            if not (columns >= {"completion", "label"} or columns >= {"chosen", "rejected"}):
                raise DataError(
                    f"{dataset_name} dataset: expected the columns prompt, completion and label, or chosen and "
                    f"rejected, or {', '.join(sorted(LABELLED_IDS))}; found {', '.join(sorted(columns)) or 'none'}"
                )
            # not under the name "train", whose labels TRL would weigh by weights that are not the method's
            dataset = super()._prepare_dataset(dataset, processing_class, args, f"{dataset_name} rows")
        if dataset_name == "train":
            _require_both(dataset["label"])
        return with_mismatched(dataset, args.seed)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The Trainer's micro-batches of a step, of whose rows the baseline is measured."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._baseline = self._measure_baseline([self._prepare_inputs(batch) for batch in batches])
        return batches, count

    def _measure_baseline(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """max(0, mean log-ratio of the mismatched answers), over the rows of all processes that count."""
        total = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for batch in batches:
            ratios = self._mismatched_ratios(self._scorer, batch).double()
            counted = batch.get(COUNTED, torch.ones_like(ratios)).to(ratios)
            total += torch.stack([(ratios * counted).sum(), counted.sum()])
        summed, rows = self.accelerator.reduce(total).unbind()
        return (summed / rows).clamp(min=0).float()

    @property
    def _scorer(self) -> Any:
        """The model for a forward without gradient: the engine under DeepSpeed, else the model without DDP."""
        return self.model_wrapped if self.is_deepspeed_enabled else self.model

    def _mismatched_ratios(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """[B], log-ratios of policy and reference of the mismatched answers, without gradient and dropout."""
        sequences = {name[3:]: value for name, value in inputs.items() if name.startswith("KL_")}
        held_out = self._mode == "eval"
        with _scoring(model), self.accelerator.autocast():
            logps = _summed(_forward(model, sequences))
        return logps - self._reference_logps(sequences, held_out=held_out)

    def _reference_logps(self, sequences: Mapping[str, Tensor], *, held_out: bool) -> Tensor:
        """[B], log-probs of the answers under the reference."""
        reference = self.model if self.ref_model is None else self.ref_model
        shared = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if not held_out or shared or self.args.sync_ref_model:
            return self._score(reference, sequences)
        # Held-out batches come again at every evaluation. Not where the forward is a collective: a rank that finds
        # its batch would leave the others waiting.
        key = hash(
            tuple(sequences[name].cpu().numpy().tobytes() for name in ("input_ids", "completion_mask"))
        )
        if key not in self._held_out_reference:
            self._held_out_reference[key] = self._score(reference, sequences)
        return self._held_out_reference[key]

    def _score(self, reference: Any, sequences: Mapping[str, Tensor]) -> Tensor:
        logps: Tensor = self.compute_ref_log_probs(reference, sequences)[0]
        return logps.float()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - TRL's signature
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """This forward's part of the mean over the step's answers; of a held-out batch, a loss that is not logged."""
        counted = self.pop_counted(inputs)
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
            record_items(self.accelerator, self._items["train"], *_metrics(rows, found, *sums), counted)
            self.count_tokens(self._tokens_seen(inputs["attention_mask"], counted))
        loss = found.losses @ self.shares(len(found.losses), counted, num_items_in_batch).to(found.losses)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; then the losses of all held-out rows by their common baseline, which are what is logged."""
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

    def _tokens_seen(self, attention_mask: Tensor, counted: Tensor | None) -> int:
        """Tokens of the rows that count, over all processes; mismatched answers are not trained on."""
        rows = attention_mask.sum(dim=1)
        return int(self.accelerator.reduce((rows if counted is None else rows * counted.to(rows)).sum()))


def _require_both(labels: Any) -> None:
    """Raise DataError unless there are desirable and undesirable answers."""
    found = {bool(label) for label in labels}
    if len(found) < 2:
        kind = "desirable" if True in found else "undesirable"
        raise DataError(f"train dataset: expected desirable and undesirable answers, found only {kind} ones")


@contextmanager
def _scoring(model: Any) -> Iterator[None]:
    """No gradient and no dropout for the time being; random states stay as they are."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _forward(model: Any, sequences: Mapping[str, Tensor]) -> Any:
    """Per-token log-probs of the answers, computed inside the model's forward (ZeRO-3 gathers the head there).

    `fused_lm_head=True` reaches the forward that `kernels.model_head.fuse_head` has put in the model's place.
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
    """[B], log-probs of the answers; positions without loss are zero."""
    logps: Tensor = outputs.log_probs.float().sum(dim=1)
    return logps


def _token_sums(outputs: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[B] each, sums over the answer's tokens: entropy in nats, and how many are the most likely ones."""
    length = mask.size(1)
    entropy = (outputs.entropy[:, -length:] * mask).sum(dim=1)
    right = (outputs.is_top1[:, -length:] & mask.bool()).sum(dim=1)
    return entropy, right


def _metrics(
    rows: LabelledLogps, found: LabelledLoss, entropy: Tensor, right: Tensor
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Values of each answer [B], and (numerator, denominator) [B] of means over one label's answers, or tokens."""
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
