"""The order of the rows within an optimizer step: by length, so that little of a forward is padding.

A step has the same rows as without this order. The rows of an epoch are shuffled as the Trainer shuffles them, and
those of each step are then sorted by length. The step's micro-batches take them in turn, so that each holds rows of
similar length, on one process or on several. The losses of a step are averaged over all of its rows, so the order
within it changes rounding only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from pyarrow.compute import list_value_length
from torch.utils.data import Dataset, Sampler

from alignkit.trainers.group_order import BalancedSampler, balanced
from alignkit.trainers.tokenised import PAIR_IDS, columns_of

LENGTH = "length"
"""Column with the tokens of each row, in transformers' name. Without it the token ids are counted."""


class LengthOrderedSampler(Sampler[int]):
    """Shuffled indices of `dataset`, where each run of `step_rows` indices is sorted by length, longest first.

    The shuffle is that of accelerate's SeedableRandomSampler with the same `seed` and epoch, or that of `shuffled`.
    `lengths[i]` is the length of row i.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        lengths: Sequence[int],
        *,
        step_rows: int,
        seed: int,
        shuffled: BalancedSampler | None = None,
    ) -> None:
        self._shuffled = shuffled or SeedableRandomSampler(dataset, data_seed=seed)
        self._lengths = lengths
        self._step_rows = step_rows

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        step: list[int] = []
        for index in self._shuffled:
            step.append(index)
            if len(step) == self._step_rows:
                yield from self._sorted(step)
                step = []
        yield from self._sorted(step)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the shuffle together with the seed."""
        self._shuffled.set_epoch(epoch)

    def _sorted(self, step: list[int]) -> list[int]:
        return sorted(step, key=lambda index: -self._lengths[index])


class GroupsByLength:
    """Mixin before a TRL trainer that sorts the rows of each optimizer step by length.

    A step of one forward is sorted too, so that a step's order never depends on how it is split. The order stays as
    it is if the composition of micro-batches matters, if `args.train_sampling_strategy` is not `random`, or if the
    dataset has no token ids.
    """

    accelerator: Any
    args: Any
    train_dataset: Any
    method: Any
    micro_batch_matters: bool

    group_by_length = True
    """Whether rows are sorted."""
    balance_groups = False
    """Whether a step holds as many rows of each group."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        own: Sampler[int] | None = super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        shuffled = balanced(self.train_dataset, seed=seed) if self.balance_groups else None
        own = own if shuffled is None else shuffled
        forwards = args.gradient_accumulation_steps * self.accelerator.num_processes
        matters = self.micro_batch_matters or self.method.micro_batch_matters
        if not self.group_by_length or matters or args.train_sampling_strategy != "random":
            return own
        lengths = lengths_of(self.train_dataset if LENGTH in columns_of(self.train_dataset) else dataset)
        if own is None or lengths is None:
            return own
        rows = args.train_batch_size * forwards
        return LengthOrderedSampler(dataset, lengths, step_rows=rows, seed=seed, shuffled=shuffled)


def lengths_of(dataset: Any) -> list[int] | None:
    """Tokens of each row of a tokenised dataset: of a pair, those of its longer sequence. None if it has no ids."""
    columns = columns_of(dataset)
    if LENGTH in columns:
        return [int(length) for length in dataset[LENGTH]]
    if columns >= PAIR_IDS:
        prompt, chosen, rejected = (
            _counts(dataset, f"{name}_ids") for name in ("prompt", "chosen", "rejected")
        )
        return [p + max(c, r) for p, c, r in zip(prompt, chosen, rejected, strict=True)]
    if columns >= {"prompt_ids", "completion_ids"}:
        parts = (_counts(dataset, f"{name}_ids") for name in ("prompt", "completion"))
        return [sum(each) for each in zip(*parts, strict=True)]
    return _counts(dataset, "input_ids") if "input_ids" in columns else None


def _counts(dataset: Any, column: str) -> list[int]:
    tables = dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return [count for table in tables for count in list_value_length(table[column]).to_pylist()]
