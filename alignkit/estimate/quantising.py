"""Bytes of weights that bitsandbytes stores for QLoRA, as alignkit.models.loading configures it."""

from collections.abc import Callable, Iterator
from typing import Any

from alignkit.estimate.upstream import linear_layers

BLOCK = 64
"""Weights of nf4 that share a constant."""
CONSTANTS = 256
"""Constants that share one of their own: their size is a byte, being quantised themselves."""


def matrices(model: Any) -> Iterator[Any]:
    """Weights of frozen linear layers but the head; the rest, biases too, stays as loaded."""
    linear = linear_layers()
    head = model.get_output_embeddings().weight
    for module in model.modules():
        if isinstance(module, linear) and not module.weight.requires_grad and module.weight is not head:
            yield module.weight


def _nf4(weight: Any) -> float:
    constants = weight.numel() / BLOCK
    return weight.numel() / 2 + constants + 4 * constants / CONSTANTS


def _int8(weight: Any) -> float:
    return float(weight.numel() + 4 * weight.size(0))  # a float32 scale a row


BYTES: dict[str, Callable[[Any], float]] = {"nf4": _nf4, "int8": _int8}
"""By the recipe's name, of a matrix."""
