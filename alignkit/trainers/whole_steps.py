"""A step's gradient is that of its rows, however many processes and forwards they are split over.

Where the last round of an epoch has too few rows for all processes, accelerate fills it up with the first ones. They
are left out of the loss here, so that a step's mean is over its own rows or tokens, each counted once.
"""

from typing import Any

import torch
from torch import Tensor

from alignkit.data.tokens import IGNORED
from alignkit.trainers.metrics import part_of_last_round
from alignkit.trainers.upstream import batch_size

COUNTED = "counted"
"""Key of a batch: [B] bool, which of its rows count. Only a batch that was filled up has it."""

_EMPTY = {"labels": IGNORED, "completion_mask": 0}
"""What a batch says of a token that carries no loss, by the key that says it."""


class WholeSteps:
    """Mixin before a TRL trainer whose loss is a mean over the tokens of a step."""

    accelerator: Any
    model: Any
    train_dataset: Any

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The Trainer's, with the filling of the last batch marked and without loss."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        size, processes = batch_size(self), self.accelerator.num_processes
        # not accelerate's own remainder, which it does not know in an epoch that is gone on with
        remainder = len(self.train_dataset) % (size * processes)
        if batches and processes > 1 and remainder and self.accelerator.gradient_state.end_of_dataloader:
            own = part_of_last_round(remainder, self.accelerator.process_index, size)
            batches[-1] = without_filling(batches[-1], own, size)
            count = self._get_num_items_in_batch(batches, device)  # type: ignore[attr-defined]
        return batches, count

    def rows_in(self, batch: dict[str, Tensor]) -> int:
        """Of a batch, the filling included."""
        return len(batch["input_ids"])

    def pop_counted(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """[B] bool, which rows count in training; None in evaluation, where accelerate knows.

        What is left in `inputs` is the model's.
        """
        counted = inputs.pop(COUNTED, None)
        if not self.model.training:
            return None
        return torch.ones(self.rows_in(inputs), dtype=torch.bool) if counted is None else counted


class WholeRowSteps(WholeSteps):
    """The same where the loss is a mean over the rows of a step: the items that are counted are rows, not tokens."""

    loss_is_scaled_for_ga = True

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        counts = (
            int(batch[COUNTED].sum()) if COUNTED in batch else self.rows_in(batch) for batch in batch_samples
        )
        return self.accelerator.gather(torch.tensor(sum(counts), device=device)).sum()

    def shares(self, count: int, counted: Tensor | None, num_items_in_batch: Any) -> Tensor:
        """[count]: times these, the losses of rows sum to this forward's part of the mean over the step's rows.

        Gradients are averaged over processes, not summed, so each takes its part as many times.
        Without `num_items_in_batch`, as in an evaluation, the mean is over the batch.
        """
        if num_items_in_batch is None or counted is None:
            return torch.full((count,), 1 / count)
        return counted * self.accelerator.num_processes / float(num_items_in_batch)


def without_filling(batch: dict[str, Tensor], count: int, size: int) -> dict[str, Tensor]:
    """The batch of `size` rows, of which only the first `count` carry loss.

    Where a row is there twice, as chosen and as rejected, the second halves follow the first.
    """
    device = next(iter(batch.values())).device
    counted = torch.arange(size, device=device) < count
    emptied = {
        name: batch[name].masked_fill(~counted.repeat(len(batch[name]) // size)[:, None], empty)
        for name, empty in _EMPTY.items()
        if name in batch
    }
    return {**batch, **emptied, COUNTED: counted}
