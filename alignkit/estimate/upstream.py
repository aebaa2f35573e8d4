"""Private parts of torch and transformers that estimates rely on; `tests/test_upstream.py` pins them.

Those of transformers are imported inside functions, which saves them at start-up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "WeakIdKeyDictionary",
    "even_experts",
    "is_masked",
    "linear_layers",
    "replace_tensors",
    "set_attention",
    "supports_sdpa",
    "tree_leaves",
]


def set_attention(config: Any, attention: str) -> None:
    """Make a model built from the configuration use this attention implementation."""
    config._attn_implementation = attention


def supports_sdpa(config: Any) -> bool:
    """Whether the causal LM of this configuration supports torch's attention; true if there is no such model."""
    from transformers import AutoModelForCausalLM  # saves transformers at start-up

    model = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return model is None or bool(model._supports_sdpa)


def replace_tensors(model: nn.Module, weight: Callable[[Any], Any], buffer: Callable[[Any], Any]) -> None:
    """Replace every weight w by `weight(w)` and every buffer b by `buffer(b)`; shared weights stay shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                if id(value) not in made:
                    made[id(value)] = weight(value)
                module._parameters[name] = made[id(value)]
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = buffer(value)


@contextmanager
def even_experts() -> Iterator[None]:
    """Let every expert get equally many tokens, since fake tensors have no values that a router could choose by.

    The shapes are those of `grouped_mm`, by which transformers runs experts. Applies to all threads.
    """
    from transformers.integrations import moe  # saves transformers at start-up

    own = moe._grouped_mm
    moe._grouped_mm = _evenly
    try:
        yield
    finally:
        moe._grouped_mm = own


def _evenly(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:  # noqa: A002 - transformers' name
    """[S, n] of rows `input` [S, m] times `weight` [E, m, n], S / E rows an expert, rounded up."""
    each = -(-input.size(0) // offs.size(0))
    rows = (
        nn.functional.pad(input, (0, 0, 0, each * offs.size(0) - input.size(0)))
        if input.size(0) % offs.size(0)
        else input
    )
    with torch.autocast("cpu", enabled=False):  # grouped_mm is not autocast
        products = torch.bmm(rows.to(weight.dtype).view(offs.size(0), each, -1), weight)
    return products.flatten(0, 1)[: input.size(0)]


def is_masked(model_type: str) -> bool:
    """Whether models of this type predict masked tokens."""
    # saves transformers at start-up
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def linear_layers() -> tuple[Any, ...]:
    """The classes of linear layers that bitsandbytes quantises."""
    from transformers.pytorch_utils import Conv1D  # saves transformers at start-up

    return nn.Linear, Conv1D
