"""Bytes that `linear_logprob` allows itself. Imports nothing, so that an estimate may read it anywhere."""

TOKENS = 2048
"""Rows of a tile in PyTorch: enough that reading the head costs little beside multiplying by it."""
TILE_BYTES = 8 * 2**20
"""One tile's float32 logits in PyTorch: about a core's share of the last cache."""
KEPT_BYTES = 320 * 2**20
"""Exponentials that PyTorch's forward keeps for a trained head's gradient; the backward recomputes the others."""
BUFFER_BYTES = 640 * 2**20
"""The logits of one chunk in Triton: 1,280 rows at a vocabulary of 128,256 in float32."""
GPU_KEPT_BYTES = 4 * 2**30
"""Logits' gradients that Triton's forward keeps for a trained head's; in 16 bits 16,743 rows of 128,256."""
GPU_KEPT_SHARE = 1 / 16
"""Of the device's whole memory, at most. Not of what is free, which differs from run to run, and sums with it."""
