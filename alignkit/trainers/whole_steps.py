"""Losses averaged over the whole optimizer step, however it is split into processes and micro-batches.

If the last round of an epoch has too few rows for all processes, accelerate pads it with the epoch's first rows.
These padding rows are left out of the loss here, so that the mean counts each of the step's rows or tokens once.
"""

from typing import Any

import torch
from torch import Tensor

from alignkit.data.tokens import IGNORED
from alignkit.trainers.metrics import part_of_last_round
from alignkit.trainers.upstream import batch_size

IS_REAL = "is_real"
"""Batch key of a [B] bool tensor, False for padding rows. Only a padded batch has it."""

_EMPTY = {"labels": IGNORED, "completion_mask": 0}
"""Batch key -> the value that excludes a token from the loss."""


class WholeSteps:
    """Mixin before a TRL trainer whose loss is a mean over the loss tokens of an optimizer step."""

    accelerator: Any
    model: Any
    train_dataset: Any

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of a step as the Trainer does. Padding rows are marked and carry no loss."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        size, processes = batch_size(self), self.accelerator.num_processes
        # accelerate's own remainder is unknown in a resumed epoch
        remainder = self._rows_of_a_pass() % (size * processes) if processes > 1 else 0
        if batches and remainder and self.accelerator.gradient_state.end_of_dataloader:
            own = part_of_last_round(remainder, self.accelerator.process_index, size)
            batches[-1] = without_padding_rows(batches[-1], own, size)
            count = self._get_num_items_in_batch(batches, device)  # type: ignore[attr-defined]
        return batches, count

    def _rows_of_a_pass(self) -> int:
        """Return the number of training rows. Raises ValueError for a stream, which does not know it."""
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError(
                "train_dataset: a streaming dataset trains on one process, since the rows that pad its last batch on "
                "several cannot be told from its own; expected a dataset with a length"
            )
        return len(self.train_dataset)

    def rows_in(self, batch: dict[str, Tensor]) -> int:
        """Return the number of rows of a batch, including padding rows."""
        return len(batch["input_ids"])

    def pop_is_real(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """Remove IS_REAL from `inputs` and return it: [B] bool, False for padding rows.

        Returns all True if there is no padding. Returns None in evaluation, where accelerate knows the padding.
        """
        is_real = inputs.pop(IS_REAL, None)
        if not self.model.training:
            return None
        return torch.ones(self.rows_in(inputs), dtype=torch.bool) if is_real is None else is_real


class WholeRowSteps(WholeSteps):
    """Mixin before a TRL trainer whose loss is a mean over the rows of an optimizer step."""

    loss_is_scaled_for_ga = True

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        counts = (
            int(batch[IS_REAL].sum()) if IS_REAL in batch else self.rows_in(batch) for batch in batch_samples
        )
        return self.accelerator.gather(torch.tensor(sum(counts), device=device)).sum()

    def row_weights(self, count: int, is_real: Tensor | None, num_items_in_batch: Any) -> Tensor:
        """Return row weights [count]: (weights * losses).sum() is this micro-batch's share of the step's mean.

        The weights include a factor of the number of processes, since gradients are averaged over processes. Without
        `num_items_in_batch`, as in an evaluation, the mean is over the batch.
        """
        if num_items_in_batch is None or is_real is None:
            return torch.full((count,), 1 / count)
        return is_real * self.accelerator.num_processes / float(num_items_in_batch)


def without_padding_rows(batch: dict[str, Tensor], count: int, size: int) -> dict[str, Tensor]:
    """Return the batch of `size` rows with loss on the first `count` only.

    A batch of pairs holds all chosen answers first, then all rejected ones.
    """
    device = next(iter(batch.values())).device
    is_real = torch.arange(size, device=device) < count
    emptied = {
        name: batch[name].masked_fill(~is_real.repeat(len(batch[name]) // size)[:, None], empty)
        for name, empty in _EMPTY.items()
        if name in batch
    }
    return {**batch, **emptied, IS_REAL: is_real}
