"""Bytes of weights that bitsandbytes stores for QLoRA, as configured in alignkit.models.loading."""

from collections.abc import Callable, Iterator
from typing import Any

from alignkit.estimate.upstream import linear_layers

BLOCK = 64
"""Number of nf4 weights that share a constant."""
CONSTANTS = 256
"""Number of constants, themselves quantised to a byte each, that share a second constant."""


def matrices(model: Any) -> Iterator[Any]:
    """Weights of frozen linear layers except the head; other weights and biases stay as loaded."""
    linear = linear_layers()
    head = model.get_output_embeddings().weight
    for module in model.modules():
        if isinstance(module, linear) and not module.weight.requires_grad and module.weight is not head:
            yield module.weight


def _nf4(weight: Any) -> float:
    constants = weight.numel() / BLOCK
    return weight.numel() / 2 + constants + 4 * constants / CONSTANTS


def _int8(weight: Any) -> float:
    return float(weight.numel() + 4 * weight.size(0))  # a float32 scale per row


BYTES: dict[str, Callable[[Any], float]] = {"nf4": _nf4, "int8": _int8}
"""Quantisation name in recipes -> bytes of a matrix."""
