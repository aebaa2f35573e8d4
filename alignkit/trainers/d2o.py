"""D2O as a TRL trainer (arXiv 2403.03419): a dispreferred answer against the model's own samples.

Rows whose answers fit into one forward train in one graph (`graphs_of`), as many rows at a time as fit. Where a row
of the batch has more, its gradient is computed in two passes. The first scores every sequence without gradient, and
`method.coefficients` turns the scores into one factor per sequence. The second runs the sequences again, a few at a
time, each part with its own backward. Both ways give the exact gradient, in memory that does not grow with K. To DDP,
DeepSpeed and FSDP they look like gradient accumulation: only the last backward of a step synchronises gradients.
Checkpointing the parts in one graph is not a simpler choice. Under DDP the recomputation would re-enter the wrapper
during the backward, and ZeRO-3 with LoRA needs re-entrant checkpoints, which DDP and ZeRO-1/2 refuse.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from trl import DPOTrainer

from alignkit.data.tokens import TokenSequence
from alignkit.errors import DataError
from alignkit.losses import PreferenceLoss, SampleLogps
from alignkit.methods import D2O
from alignkit.packing import is_packed
from alignkit.run.reference_store import ReferenceStore
from alignkit.run.resume_guard import sharding_of
from alignkit.terms import RowView, Term
from alignkit.trainers.base import AlignTrainer
from alignkit.trainers.configs import D2OConfig, DispreferredConfig, own_config, require_config
from alignkit.trainers.d2o_preparation import D2OPreparation
from alignkit.trainers.d2o_rounds import Rounds
from alignkit.trainers.d2o_rows import D2ORow
from alignkit.trainers.metrics import record_items
from alignkit.trainers.sequences import SequenceLogps, graphs_of, parts_of, sequence_logps
from alignkit.trainers.signature import Model, shows_parameters_of
from alignkit.trainers.upstream import disable_gradient_checkpointing, gradients_synchronise
from alignkit.trainers.whole_steps import WholeRowSteps


@dataclass(frozen=True, slots=True)
class _Batch:
    numbers: Tensor
    """[B], the rows' numbers."""
    rows: list[D2ORow]
    sequences: list[TokenSequence]
    """The dispreferred answers of all rows, then the samples of each row in turn."""
    mask: Tensor
    """[B, K] bool, True for the samples that exist."""
    ref_rejected: Tensor
    ref_samples: Tensor
    row_weights: Tensor
    """[B], row weights: (weights * losses).sum() is this batch's share of the mean over the step's rows."""
    is_real: Tensor | None
    """[B] bool in training, False for padding rows of the last batch; None in evaluation."""

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Split values of the sequences into the samples' [B, K] and the dispreferred answers' [B]."""
        count = len(self.rows)
        samples = values.new_zeros(self.mask.shape).masked_scatter(self.mask, values[count:])
        return samples, values[:count]

    def sample_logps(self, logps: Tensor) -> SampleLogps:
        """Make the loss's record from the sequences' log-probs under the policy."""
        samples, rejected = self.split(logps)
        return SampleLogps(samples, self.ref_samples, rejected, self.ref_rejected, self.mask)

    def sequences_of(self, index: int) -> list[TokenSequence]:
        """Return the dispreferred answer and the samples of a row."""
        return [self.rows[index].rejected, *self.rows[index].samples]

    def of(self, indices: list[int]) -> "_Batch":
        """Return the batch of only these rows."""
        rows = [self.rows[index] for index in indices]
        most = max(len(row.samples) for row in rows)
        return replace(
            self,
            numbers=self.numbers[indices],
            rows=rows,
            sequences=[row.rejected for row in rows] + [one for row in rows for one in row.samples],
            mask=self.mask[indices, :most],
            ref_rejected=self.ref_rejected[indices],
            ref_samples=self.ref_samples[indices, :most],
            row_weights=self.row_weights[indices],
            is_real=None if self.is_real is None else self.is_real[indices],
        )

    def places_of(self, indices: list[int]) -> list[int]:
        """Return where the sequences of `of(indices)` are among the batch's."""
        starts = [len(self.rows)]
        for row in self.rows:
            starts.append(starts[-1] + len(row.samples))
        return indices + [place for index in indices for place in range(starts[index], starts[index + 1])]


class _Schedule(NamedTuple):
    """The forwards of a batch."""

    parts: list[list[int]]
    """Indices of the sequences of each forward that scores, or trains in the second pass."""
    graphs: list[list[int]] | None
    """Indices of the rows of each forward that trains in one graph; None if a row needs two passes."""


def _in_order(found: Mapping[int, tuple[Tensor, ...]]) -> SequenceLogps:
    """Scores of a batch's sequences in the batch's order, from those by place."""
    columns = zip(*(found[place] for place in range(len(found))), strict=True)
    return SequenceLogps(*(torch.stack(column) for column in columns))


class D2OTrainer(AlignTrainer, WholeRowSteps, D2OPreparation):
    """DPOTrainer for rows with only a dispreferred answer. The loss is `method.loss`.

    A dataset has the columns of `alignkit.data.parse_dispreferred`'s forms: prompt, rejected and optionally samples.
    Missing samples are drawn from the reference when the trainer is built. With `resample_every`, samples are also
    drawn from the policy during training. Held-out rows keep their first samples and scores, so that their loss stays
    comparable. `report` gets notices for people (default: warnings). Raises DataError, SamplingError, and
    FloatingPointError, which names step and rows, if a log-prob is not finite.
    """

    @shows_parameters_of(DPOTrainer, "data_collator")
    def __init__(
        self,
        model: Model,
        args: DispreferredConfig | None = None,
        *,
        method: D2O | None = None,
        terms: Sequence[Term] = (),
        report: Callable[[str], None] | None = None,
        references: ReferenceStore | None = None,
        packing: bool | None = False,
        **kwargs: Any,
    ) -> None:
        """Create the trainer with DPOTrainer's arguments.

        With `references`, log-probs under the policy before its first step are stored there for later runs. `packing`
        computes a row's prompt once for all of its answers: None where the model can, True or ModelError.

        `args` is a `D2OConfig`; None means the defaults. `terms` weight the rows in training. If `method` is given,
        the options are taken from it, and `args` is a `DispreferredConfig`. Raises TypeError for another
        configuration, such as TRL's, before loading any model.
        """
        if method is None:
            args = own_config(D2OConfig, args, model)
            method = args.method()
        require_config(args, DispreferredConfig)
        self.method = method
        self._tag_names = ["trl", method.type.replace("_", "-"), "alignkit"]
        super().__init__(model, args, report=report, references=references, packing=packing, **kwargs)
        self.add_callback(Rounds(self))
        sharded = {"zero3": "ZeRO-3", "fsdp2": "FSDP"}.get(sharding_of(self.accelerator))
        for issue in method.refused_online(sharded):
            raise DataError(str(issue))
        self.use_terms(terms, method.start_loss())

    def _groups_of(self, dataset: Any) -> list[str | None]:
        groups = [self.rows.rows[number].group for number in dataset["row"]]
        return groups if any(groups) else []

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - Trainer's signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss in one graph, for evaluation. The graph grows with K, so training does not use this."""
        batch = self._batch(inputs, num_items_in_batch)
        scored = self._score_batch(model, batch, self._schedule(batch).parts)
        preference = self._preference(batch, scored)
        self._record_step(batch, scored, preference)
        loss = self._share(batch, preference, self._term_weights(batch, preference))
        return (loss, {}) if return_outputs else loss

    def training_step(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Compute the detached loss and its gradient, in one graph or in parts as the module's docstring explains."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimizers without a schedule
            self.optimizer.train()
        batch = self._batch(inputs, num_items_in_batch)
        schedule = self._schedule(batch)
        if schedule.graphs is None:
            return self._two_passes(model, batch, schedule.parts)
        return self._one_pass(model, batch, schedule.parts, schedule.graphs)

    def _one_pass(self, model: Any, batch: _Batch, parts: list[list[int]], graphs: list[list[int]]) -> Tensor:
        """Back-propagate the loss of some of the batch's rows at a time."""
        found: dict[int, tuple[Tensor, ...]] = {}
        weights = batch.row_weights.new_ones(len(batch.rows))
        weigh_first = self.row_terms is not None and len(graphs) > 1
        if weigh_first:  # a term weighs all rows of a batch together
            with torch.no_grad(), self._without_checkpointing():
                scored = self._score_batch(model, batch, parts)
                weights = self._term_weights(batch, self._preference(batch, scored)).to(weights)
        for turn, indices in enumerate(graphs):
            # repeated rows only equalise the number of forwards over the ranks, so they get no weight
            counts = float(graphs.index(indices) == turn)
            rows = batch.of(indices)
            last = turn == len(graphs) - 1
            with self._accumulating(model, last=last), self.maybe_activation_offload_context:
                scored = self._logps(model, rows, list(range(len(rows.sequences))))
                preference = self._preference(rows, scored)
                if counts and not weigh_first:
                    weights[indices] = self._term_weights(rows, preference).to(weights)
                loss = counts * self._share(rows, preference, weights[indices])
                self._backward(loss, batch, last=last)
            values = zip(scored.logps.detach(), scored.entropy, scored.tokens, strict=True)
            found.update(zip(batch.places_of(indices), values, strict=True))
        with torch.no_grad():
            whole = _in_order(found)
            preference = self._preference(batch, whole)
            self._record_step(batch, whole, preference)
            return self._share(batch, preference, weights)

    def _two_passes(self, model: Any, batch: _Batch, parts: list[list[int]]) -> Tensor:
        """Score all sequences, then back-propagate their log-probs, a part at a time."""
        with torch.no_grad(), self._without_checkpointing():
            scored = self._score_batch(model, batch, parts)
            preference = self._preference(batch, scored)
            self._record_step(batch, scored, preference)
            weights = self._term_weights(batch, preference)
            loss = self._share(batch, preference, weights)
            found = self.method.coefficients(batch.sample_logps(scored.logps))
            row_weights = batch.row_weights * weights * len(batch.rows)  # replaces the mean over the batch
            coefficients = torch.cat(
                [found.rejected * row_weights, (found.samples * row_weights[:, None])[batch.mask]]
            )
        done: set[int] = set()
        for turn, part in enumerate(parts):
            # a repeated part only equalises the number of forwards over the ranks, so it gets no weight
            weights = coefficients[part] * float(part[0] not in done)
            done.update(part)
            last = turn == len(parts) - 1
            with self._accumulating(model, last=last), self.maybe_activation_offload_context:
                logps = self._logps(model, batch, part).logps
                self._backward((weights * logps).sum(), batch, last=last)
        return loss

    def _without_checkpointing(self) -> AbstractContextManager[Any]:
        return disable_gradient_checkpointing(self._unwrapped(), self.args.gradient_checkpointing_kwargs)

    def _backward(self, loss: Tensor, batch: _Batch, *, last: bool) -> None:
        """Back-propagate a share of the batch's loss, the last one with the loss of the weights themselves."""
        if last:
            loss = loss + self.weight_loss(batch.row_weights.sum())
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))

    @contextlib.contextmanager
    def _accumulating(self, model: Any, *, last: bool) -> Iterator[None]:
        """Accumulate gradients without synchronising them, except for the last backward of a step."""
        if last:
            yield
            return
        state = self.accelerator.gradient_state
        with gradients_synchronise(state, synchronise=False), self.accelerator.no_sync(model):
            yield

    def rows_in(self, batch: dict[str, Tensor]) -> int:
        """Return the number of prompts in the batch."""
        return len(batch["row"])

    def _batch(self, inputs: dict[str, Tensor], num_items_in_batch: Any) -> _Batch:
        is_real = self.pop_is_real(inputs)
        rows = [self.rows.rows[number] for number in inputs["row"].tolist()]
        device = self.accelerator.device
        most = max(len(row.samples) for row in rows)
        mask = torch.tensor([[index < len(row.samples) for index in range(most)] for row in rows])
        ref_samples = torch.zeros(mask.shape)
        ref_samples[mask] = torch.tensor([value for row in rows for value in row.ref_samples])
        return _Batch(
            numbers=inputs["row"].to(device),
            rows=rows,
            sequences=[row.rejected for row in rows] + [one for row in rows for one in row.samples],
            mask=mask.to(device),
            ref_rejected=torch.tensor([row.ref_rejected for row in rows], device=device),
            ref_samples=ref_samples.to(device),
            row_weights=self.row_weights(len(rows), is_real, num_items_in_batch).to(device),
            is_real=is_real,
        )

    def _schedule(self, batch: _Batch) -> _Schedule:
        """Divide the batch into forwards. Every rank gets equally many, since a forward may be collective."""
        size, packed = self.method.sequence_batch_size, is_packed(self._unwrapped())
        parts = parts_of(batch.sequences, size, packed=packed)
        rows = [batch.sequences_of(index) for index in range(len(batch.rows))]
        graphs = graphs_of(rows, size, packed=packed)
        if self.accelerator.num_processes == 1:
            return _Schedule(parts, graphs)
        own = torch.tensor([[len(parts), len(graphs or ())]], device=self.accelerator.device)
        counts = self.accelerator.gather(own)
        most_parts, most_graphs = counts.amax(dim=0).tolist()
        parts = parts_of(batch.sequences, size, most_parts, packed=packed)
        if graphs is None or int(counts[:, 1].min()) == 0:
            return _Schedule(parts, None)
        return _Schedule(parts, graphs + [graphs[0]] * (most_graphs - len(graphs)))

    def _score_batch(self, model: Any, batch: _Batch, parts: list[list[int]]) -> SequenceLogps:
        found: dict[int, tuple[Tensor, ...]] = {}
        for part in parts:
            result = self._logps(model, batch, part)
            rows = zip(result.logps, result.entropy, result.tokens, strict=True)
            found.update(zip(part, rows, strict=True))
        return _in_order(found)

    def _logps(self, model: Any, batch: _Batch, part: list[int]) -> Any:
        return sequence_logps(
            model,
            [batch.sequences[index] for index in part],
            pad_token_id=self.processing_class.pad_token_id,
            device=self.accelerator.device,
            reduction=self.method.logps,
        )

    def _preference(self, batch: _Batch, scored: SequenceLogps) -> PreferenceLoss:
        """The loss of each row. Raises FloatingPointError if one is not finite."""
        preference = self.method.loss(batch.sample_logps(scored.logps))
        self._require_finite_losses(preference.losses, batch)
        return preference

    def _share(self, batch: _Batch, preference: PreferenceLoss, weights: Tensor) -> Tensor:
        """The batch's share of the step's loss, with [B] weights that the terms give its rows."""
        return (weights * preference.losses) @ batch.row_weights.to(preference.losses)

    def _term_weights(self, batch: _Batch, preference: PreferenceLoss) -> Tensor:
        if self.row_terms is None or batch.is_real is None:
            return torch.ones_like(preference.losses.detach())
        chosen, rejected = preference.chosen_rewards, preference.rejected_rewards
        names = self.row_terms.setup.groups
        groups = [-1 if row.group is None else names.index(row.group) for row in batch.rows]
        facts = batch.numbers, torch.tensor(groups, device=chosen.device)
        view = RowView(preference.losses.detach(), *facts, chosen - rejected, chosen, rejected)
        return self.row_terms.apply(view, batch.is_real)[0]

    def _require_finite_losses(self, losses: Tensor, batch: _Batch) -> None:
        finite = torch.isfinite(losses.detach()).tolist()
        bad = [index for index, good in enumerate(finite) if not good]
        if bad:
            texts = [batch.rows[index].text for index in bad[:3]]
            raise FloatingPointError(
                f"the loss is not finite at step {self.state.global_step}, rows {bad} of the batch, "
                f"which begin: {texts}"
            )

    def _record_step(self, batch: _Batch, scored: SequenceLogps, preference: PreferenceLoss) -> None:
        samples, rejected = batch.split(scored.logps)
        counts = batch.mask.sum(dim=1)
        log_ratios = rejected - batch.ref_rejected
        margins = preference.chosen_rewards - preference.rejected_rewards
        floor = -torch.inf if self.method.rejected_floor is None else self.method.rejected_floor
        entropies, tokens = (
            sampled.sum(dim=1) + of_rejected
            for sampled, of_rejected in (batch.split(scored.entropy), batch.split(scored.tokens))
        )
        # The Trainer logs the training loss; its evaluation loss is a mean over batches and is replaced.
        losses = {} if self._mode == "train" else {"loss": preference.losses}
        record_items(
            self.accelerator,
            self._items[self._mode],
            {
                **losses,
                "rewards/samples": preference.chosen_rewards,
                "rewards/rejected": preference.rejected_rewards,
                "rewards/margins": margins,
                "rewards/accuracies": margins > 0,
                "logps/samples": samples.sum(dim=1) / counts,
                "logps/rejected": rejected,
                "logratios/samples": (samples - batch.ref_samples).sum(dim=1) / counts,
                "logratios/rejected": log_ratios,
                "rejected_below_floor": log_ratios < floor,
                "samples": counts,
            },
            {"entropy": (entropies, tokens)},
            batch.is_real,
        )
        if self._mode == "train":
            self.count_tokens(self._tokens_seen(batch))

    def _tokens_seen(self, batch: _Batch) -> int:
        """Tokens of the batch's rows without padding rows, over all processes."""
        lengths = torch.tensor([len(one.ids) for one in batch.sequences], device=batch.mask.device)
        samples, rejected = batch.split(lengths)
        of_rows = samples.sum(dim=1) + rejected
        return int(self.accelerator.reduce((of_rows * (batch.row_weights > 0)).sum()))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002 - Trainer's signature
        """Return 0: a batch holds row numbers, and the Trainer's estimate needs tokens."""
        return 0
