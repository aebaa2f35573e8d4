"""Packing: a batch's sequences side by side in few rows, without padding, each prompt once for all of its answers.

`pack(model, wanted=…)` makes a model's fused forward pack its batches. The result keeps its shape [B, L-1] and its
values up to rounding, and so do gradients, because every token attends to exactly the tokens that it attends to in a
padded batch, at the same positions (shared prefixes: arXiv 2410.20305).
"""

from alignkit.packing.packer import is_packed, pack, refusal

__all__ = ["is_packed", "pack", "refusal"]
