"""A watch that fails when an operation returns a [tokens, vocabulary] tensor."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class forbid_logits(TorchDispatchMode):  # noqa: N801 - used as a function: `with forbid_logits(…):`
    """Within it, an operation that returns logits of `tokens` rows or more is an AssertionError.

    Logits are whatever has a dimension of `vocabulary`, or is flat and divides by it, and holds `tokens` x
    `vocabulary` elements. So the vocabulary must be a size that nothing else in the model has, and `tokens` more than
    the model is wide, since its weights are no logits. Backward passes inside the block are watched too.
    Show in the same test that ALIGNKIT_KERNELS=reference fails, so that the watch is known to see.
    """

    def __init__(self, tokens: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.vocabulary = tokens, vocabulary

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and self._is_over_the_vocabulary(value):
                assert value.numel() < self.tokens * self.vocabulary, (
                    f"{func} made logits: a tensor {tuple(value.shape)}, where {self.tokens} rows of "
                    f"{self.vocabulary} are forbidden"
                )
        return result

    def _is_over_the_vocabulary(self, value: Tensor) -> bool:
        flat = value.dim() == 1 and value.numel() % self.vocabulary == 0
        return flat or self.vocabulary in value.shape
