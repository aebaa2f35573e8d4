"""Fails whatever makes a [tokens, vocabulary] tensor: hooks every tensor that an operation returns."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class forbid_logits(TorchDispatchMode):  # noqa: N801 - used as a function: `with forbid_logits(…):`
    """Within it, an operation that returns a tensor of `tokens` x `vocabulary` elements or more is an AssertionError.

    Whatever the tensor's shape, so that flat and padded logits count too; hence the rest of the model must be
    smaller: take more `tokens` than the model is wide. Backward passes inside the block are watched too.
    """

    def __init__(self, tokens: int, vocabulary: int) -> None:
        super().__init__()
        self.limit = tokens * vocabulary
        self.forbidden = f"[{tokens}, {vocabulary}]"
        self.largest = 0
        """Elements of the largest tensor seen, to show that something was."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
                assert value.numel() < self.limit, (
                    f"{func} made a tensor {tuple(value.shape)}, as large as logits {self.forbidden}"
                )
        return result
