"""D2O as a TRL trainer (arXiv 2403.03419): a dispreferred answer against the model's own samples.

How a step's gradient is made: every sequence of the batch is scored without gradient, `method.coefficients` turns the
scores into one number a sequence, and the sequences run again a few at a time, each few with its own backward. That
is the exact gradient in memory that does not grow with K, and to DDP, DeepSpeed and FSDP it is plain gradient
accumulation: all but the last backward of a step are told not to synchronise. Checkpointing the few instead, for one
backward over one graph, is no simpler where it matters: under DDP the recomputation would re-enter the wrapper in
the middle of the backward, and ZeRO-3 with LoRA needs re-entrant checkpoints, which DDP and ZeRO-1/2 refuse.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from alignkit.data.tokens import TokenSequence
from alignkit.errors import DataError
from alignkit.losses import PreferenceLoss, SampleLogps
from alignkit.methods import D2O
from alignkit.run.resume_guard import sharding_of
from alignkit.trainers.base import AlignTrainer
from alignkit.trainers.configs import D2OConfig, DispreferredConfig, own_config, require_config
from alignkit.trainers.d2o_preparation import D2OPreparation
from alignkit.trainers.d2o_rounds import Rounds
from alignkit.trainers.d2o_rows import D2ORow
from alignkit.trainers.metrics import record_items
from alignkit.trainers.sequences import parts_of, sequence_logps
from alignkit.trainers.upstream import disable_gradient_checkpointing, gradients_synchronise
from alignkit.trainers.whole_steps import WholeRowSteps


@dataclass(frozen=True, slots=True)
class _Batch:
    rows: list[D2ORow]
    sequences: list[TokenSequence]
    """The dispreferred answers, then the samples row by row."""
    mask: Tensor
    """[B, K] bool, which samples there are."""
    ref_rejected: Tensor
    ref_samples: Tensor
    shares: Tensor
    """[B], by what a row's loss is multiplied to give its part of the mean over the step's rows."""
    counted: Tensor | None
    """[B] bool in training, which rows are not only there to fill up the last batch."""

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the sequences as those of the samples, [B, K], and of the dispreferred answers, [B]."""
        count = len(self.rows)
        samples = values.new_zeros(self.mask.shape).masked_scatter(self.mask, values[count:])
        return samples, values[:count]

    def sample_logps(self, logps: Tensor) -> SampleLogps:
        """The record of the sequences' log-probs under the policy."""
        samples, rejected = self.split(logps)
        return SampleLogps(samples, self.ref_samples, rejected, self.ref_rejected, self.mask)


@dataclass(frozen=True, slots=True)
class _Scored:
    logps: Tensor
    """Of a batch's sequences, in their order, as the others."""
    entropies: Tensor
    tokens: Tensor


class D2OTrainer(AlignTrainer, WholeRowSteps, D2OPreparation):
    """DPOTrainer on rows with a dispreferred answer only; the loss is `method.loss`.

    A dataset has the columns of `alignkit.data.parse_dispreferred`'s forms: prompt, rejected and, where samples come
    with the data, samples. Others are drawn when the trainer is built, from the reference; with `resample_every` also
    from the policy during training. Held-out rows keep their first samples and scores, so that their loss stays
    comparable. `report` takes notices for people (default: warnings). Raises DataError, SamplingError, and
    FloatingPointError with step and rows where a log-prob is not finite.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        method: D2O | None = None,
        report: Callable[[str], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take DPOTrainer's arguments, with a `D2OConfig` as `args`, the default one where none is given.

        With `method` given its options are its own, and `args` is a `DispreferredConfig`. Raises TypeError for
        another configuration, such as TRL's, before anything is loaded.
        """
        if method is None:
            args = own_config(D2OConfig, args, model)
            method = args.method()
        require_config(args, DispreferredConfig)
        self.method = method
        self._tag_names = ["trl", method.type.replace("_", "-"), "alignkit"]
        super().__init__(model, args, report=report, **kwargs)
        self.add_callback(Rounds(self))
        sharded = {"zero3": "ZeRO-3", "fsdp2": "FSDP"}.get(sharding_of(self.accelerator))
        for issue in method.refused_online(sharded):
            raise DataError(str(issue))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - Trainer's signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss in one graph, which evaluation needs; the graph grows with K, so `training_step` does without."""
        batch = self._batch(inputs, num_items_in_batch)
        scored = self._score_batch(model, batch)
        loss = self._loss(batch, scored)
        return (loss, {}) if return_outputs else loss

    def training_step(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The loss, detached; its gradient in parts, as the module says."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimizers without a schedule
            self.optimizer.train()
        batch = self._batch(inputs, num_items_in_batch)
        parts = self._parts(batch.sequences)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self._unwrapped(), self.args.gradient_checkpointing_kwargs),
        ):
            scored = self._score_batch(model, batch, parts)
            loss = self._loss(batch, scored)
            found = self.method.coefficients(batch.sample_logps(scored.logps))
            shares = batch.shares * len(batch.rows)  # in the place of the mean over the batch
            coefficients = torch.cat([found.rejected * shares, (found.samples * shares[:, None])[batch.mask]])
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        options = {"scale_wrt_gas": False} if deepspeed else {}
        counted: set[int] = set()
        for turn, part in enumerate(parts):
            # a part that is only there so that all processes have as many counts for nothing
            weights = coefficients[part] * float(part[0] not in counted)
            counted.update(part)
            with (
                self._accumulating(model, last=turn == len(parts) - 1),
                self.maybe_activation_offload_context,
            ):
                logps = self._logps(model, batch, part).logps
                self.accelerator.backward((weights * logps).sum(), **options)
        return loss

    @contextlib.contextmanager
    def _accumulating(self, model: Any, *, last: bool) -> Iterator[None]:
        """For all but the last backward of a step: gradients add up here and are not synchronised yet."""
        if last:
            yield
            return
        state = self.accelerator.gradient_state
        with gradients_synchronise(state, synchronise=False), self.accelerator.no_sync(model):
            yield

    def rows_in(self, batch: dict[str, Tensor]) -> int:
        """Prompts."""
        return len(batch["row"])

    def _batch(self, inputs: dict[str, Tensor], num_items_in_batch: Any) -> _Batch:
        counted = self.pop_counted(inputs)
        rows = [self.rows.rows[number] for number in inputs["row"].tolist()]
        device = self.accelerator.device
        most = max(len(row.samples) for row in rows)
        mask = torch.tensor([[index < len(row.samples) for index in range(most)] for row in rows])
        ref_samples = torch.zeros(mask.shape)
        ref_samples[mask] = torch.tensor([value for row in rows for value in row.ref_samples])
        return _Batch(
            rows=rows,
            sequences=[row.rejected for row in rows] + [one for row in rows for one in row.samples],
            mask=mask.to(device),
            ref_rejected=torch.tensor([row.ref_rejected for row in rows], device=device),
            ref_samples=ref_samples.to(device),
            shares=self.shares(len(rows), counted, num_items_in_batch).to(device),
            counted=counted,
        )

    def _parts(self, sequences: list[TokenSequence]) -> list[list[int]]:
        """The sequences a few at a time; as many times on every process, since forwards may be collective."""
        parts = parts_of(sequences, self.method.sequence_batch_size)
        if self.accelerator.num_processes == 1:
            return parts
        count = torch.tensor([len(parts)], device=self.accelerator.device)
        most = int(self.accelerator.gather(count).max())
        return parts_of(sequences, self.method.sequence_batch_size, at_least=most)

    def _score_batch(self, model: Any, batch: _Batch, parts: list[list[int]] | None = None) -> _Scored:
        parts = self._parts(batch.sequences) if parts is None else parts
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for part in parts:
            result = self._logps(model, batch, part)
            rows = zip(result.logps, result.entropy, result.tokens, strict=True)
            found.update(zip(part, rows, strict=True))
        columns = zip(*(found[index] for index in range(len(batch.sequences))), strict=True)
        return _Scored(*(torch.stack(column) for column in columns))

    def _logps(self, model: Any, batch: _Batch, part: list[int]) -> Any:
        return sequence_logps(
            model,
            [batch.sequences[index] for index in part],
            pad_token_id=self.processing_class.pad_token_id,
            device=self.accelerator.device,
            reduction=self.method.logps,
        )

    def _loss(self, batch: _Batch, scored: _Scored) -> Tensor:
        preference = self.method.loss(batch.sample_logps(scored.logps))
        self._require_finite_losses(preference.losses, batch)
        self._record_step(batch, scored, preference)
        return preference.losses @ batch.shares.to(preference.losses)

    def _require_finite_losses(self, losses: Tensor, batch: _Batch) -> None:
        finite = torch.isfinite(losses.detach()).tolist()
        bad = [index for index, good in enumerate(finite) if not good]
        if bad:
            texts = [batch.rows[index].text for index in bad[:3]]
            raise FloatingPointError(
                f"the loss is not finite at step {self.state.global_step}, rows {bad} of the batch, "
                f"which begin: {texts}"
            )

    def _record_step(self, batch: _Batch, scored: _Scored, preference: PreferenceLoss) -> None:
        samples, rejected = batch.split(scored.logps)
        counts = batch.mask.sum(dim=1)
        log_ratios = rejected - batch.ref_rejected
        margins = preference.chosen_rewards - preference.rejected_rewards
        floor = -torch.inf if self.method.rejected_floor is None else self.method.rejected_floor
        entropies, tokens = (
            sampled.sum(dim=1) + of_rejected
            for sampled, of_rejected in (batch.split(scored.entropies), batch.split(scored.tokens))
        )
        # In training the Trainer logs a loss; its evaluation's, which weighs batches, is replaced.
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
            batch.counted,
        )
        if self._mode == "train":
            self.count_tokens(self._tokens_seen(batch))

    def _tokens_seen(self, batch: _Batch) -> int:
        """Of the rows that count, over all processes."""
        lengths = torch.tensor([len(one.ids) for one in batch.sequences], device=batch.mask.device)
        samples, rejected = batch.split(lengths)
        of_rows = samples.sum(dim=1) + rejected
        return int(self.accelerator.reduce((of_rows * (batch.shares > 0)).sum()))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002 - Trainer's signature
        """Not counted: a batch holds row numbers, and Trainer's estimate needs its tokens."""
        return 0
