"""Selection of the rows whose label is not ignored, with at most one wait for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.kernels.upstream import assert_on_device


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to compute of N."""

    index: Tensor | None
    """Positions of the rows, [n] int64; None if there is no label to ignore."""
    count: int
    """N."""

    def take(self, x: Tensor) -> Tensor:
        """Return the rows of `x` [N, ...]; `x` itself if these are all."""
        return x if self.index is None else x[self.index]

    def spread(self, values: Tensor) -> Tensor:
        """Expand `values` [n, ...] to [N, ...], with zero or False in the other rows."""
        if self.index is None:
            return values
        return values.new_zeros(self.count, *values.shape[1:]).index_put((self.index,), values)


def kept(labels: Tensor, vocabulary: int, ignore_index: int | None, expected: str) -> Rows:
    """Return the rows whose label is not `ignore_index`; with None all rows, without a wait for their number.

    Raises ValueError for a label outside [0, vocabulary); `expected` is the message up to what was found. On a GPU it
    is a device assertion instead, which does not wait.
    """
    keep = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    wrong = keep & ((labels < 0) | (labels >= vocabulary))
    if labels.is_cuda:
        assert_on_device(~wrong.any(), expected)
    elif bool(wrong.any()):
        raise ValueError(f"{expected}, found {int(labels[wrong][0])}")
    if ignore_index is None:
        return Rows(None, len(labels))
    index = keep.nonzero().squeeze(1)
    return Rows(None if len(index) == len(labels) else index, len(labels))
