"""Attention of packed rows on a CPU, which computes what is seen and no more: a prompt, and each answer after it.

SDPA under a dense mask computes all pairs of a row's tokens, and hides most of them where a prompt has many answers.
Here a row is cut where its prompts and answers end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from alignkit.packing.trees import Tree

NAME = "sdpa"
"""transformers' name for the attention that `install` replaces."""
ARGUMENT = "packed_trees"
"""Argument of a model's forward that carries `PackedTrees` to its layers."""


@dataclass(frozen=True, slots=True)
class PackedTrees:
    """The trees of each packed row, and the masks of their answers, which all layers share."""

    rows: Sequence[Sequence[Tree]]
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def mask(self, shared: int, length: int, dtype: torch.dtype) -> Tensor:
        """Return [length, shared + length], added to scores: 0 for the shared tokens and an answer's earlier ones."""
        key = (shared, length)
        if key not in self.masks:
            hidden = torch.full((length, shared + length), -torch.inf, dtype=dtype)
            self.masks[key] = hidden.triu(shared + 1)
        return self.masks[key]


def install() -> None:
    """Have transformers' SDPA attend as here where `PackedTrees` are given, and as before everywhere else."""
    before = AttentionInterface()[NAME]
    if not getattr(before, ARGUMENT, False):
        AttentionInterface.register(NAME, _attention_beside(before))


def _attention_beside(plain: Callable[..., Any]) -> Callable[..., Any]:
    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_trees: PackedTrees | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if packed_trees is None or attention_mask is None:
            return plain(module, query, key, value, attention_mask, **options)
        if options.get("position_bias") is not None:
            raise NotImplementedError("packed trees with a learned bias of positions")
        groups = query.size(1) // key.size(1)
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        rows = zip(packed_trees.rows, zip(query, key, value, strict=True), strict=True)
        found = [_row(packed_trees, row, states, options.get("scaling")) for row, states in rows]
        return torch.stack(found).transpose(1, 2), None

    attention.packed_trees = True  # type: ignore[attr-defined]
    return attention


def _row(packed: PackedTrees, trees: Sequence[Tree], states: Sequence[Tensor], scale: float | None) -> Tensor:
    """Attention [heads, W, D] of one row with (query, key, value) `states`; zeros where it is filled up."""
    lengths = [length for tree in trees for length in (tree.shared, *tree.answers)]
    filling = states[0].size(1) - sum(lengths)
    parts = zip(*(one.split([*lengths, filling], dim=1) for one in states), strict=True)
    found = []
    for tree in trees:
        query, keys, values = next(parts)
        if tree.shared:
            found.append(scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale))
        for length in tree.answers:
            query, own_keys, own_values = next(parts)
            if length:
                mask = packed.mask(tree.shared, length, query.dtype)
                seen = torch.cat((keys, own_keys), dim=1), torch.cat((values, own_values), dim=1)
                found.append(scaled_dot_product_attention(query, *seen, mask, scale=scale))
    found.append(torch.zeros_like(next(parts)[0]))
    return torch.cat(found, dim=1)
