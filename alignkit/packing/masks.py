"""Attention masks of packed rows: a token sees the tokens before it on its own path through its own tree."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names for the two kinds of layers that a mask can be made for."""


def visible(positions: Tensor, trees: Tensor, branches: Tensor, window: int | None = None) -> Tensor:
    """Return bool [R, 1, W, W]: whether a token (third axis) sees another one (fourth axis).

    All arguments are [R, W]. With `window`, it sees only those less than `window` positions before it.
    """
    query, key = (slice(None), slice(None), None), (slice(None), None, slice(None))
    same_tree = trees[query] == trees[key]
    on_path = (branches[key] == 0) | (branches[query] == branches[key])
    seen = same_tree & on_path & (positions[key] <= positions[query])
    if window is not None:
        seen &= positions[query] - positions[key] < window
    return seen[:, None]


def block_mask(positions: Tensor, trees: Tensor, branches: Tensor, window: int | None = None) -> BlockMask:
    """Return the same mask for FlexAttention, which skips blocks that are all hidden."""

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        on_path = (branches[row, key] == 0) | (branches[row, query] == branches[row, key])
        distance = positions[row, query] - positions[row, key]
        seen = (trees[row, query] == trees[row, key]) & on_path & (distance >= 0)
        return seen if window is None else seen & (distance < window)

    rows, wide = positions.shape
    return create_block_mask(sees, rows, None, wide, wide, device=positions.device)


def window_of(config: Any) -> int | None:
    """The number of positions that a sliding layer sees; None if the model has no sliding layer."""
    return config.sliding_window if SLIDING in layer_types(config) else None


def exceeded_window(config: Any, positions: Tensor) -> int | None:
    """The window of the sliding layers; None if there are none, or if no sequence exceeds it."""
    window = window_of(config)
    return None if window is None or int(positions.max()) < window else window


def layer_types(config: Any) -> frozenset[str]:
    """The kinds of attention in a model's layers, by transformers' names."""
    listed = getattr(config, "layer_types", None)
    if listed:
        return frozenset(listed)
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return frozenset({SLIDING if slides else FULL})


def masks(config: Any, positions: Tensor, trees: Tensor, branches: Tensor) -> Any:
    """Return what the forward of a model with this configuration takes as `attention_mask`.

    That is one mask, or a dict of kind of layer -> mask if the kinds differ and a sequence exceeds the window.
    """
    window, kinds = exceeded_window(config, positions), layer_types(config)
    make = block_mask if config._attn_implementation == "flex_attention" else _dense  # noqa: SLF001
    if window is None:
        return make(positions, trees, branches)
    if kinds == {SLIDING}:
        return make(positions, trees, branches, window)
    return {FULL: make(positions, trees, branches), SLIDING: make(positions, trees, branches, window)}


def _dense(positions: Tensor, trees: Tensor, branches: Tensor, window: int | None = None) -> Tensor:
    """The mask for SDPA. On a CPU it is added to the scores, because SDPA would convert a bool one in each layer."""
    seen = visible(positions, trees, branches, window)
    if seen.device.type != "cpu":
        return seen
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
