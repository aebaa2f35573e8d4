"""Bytes that `linear_logprob` allows itself. Imports nothing, so that an estimate may read it anywhere."""

TOKENS = 2048
"""Rows of a tile in PyTorch: enough that reading the head costs little beside multiplying by it."""
TILE_BYTES = 8 * 2**20
"""One tile's float32 logits in PyTorch: about a core's share of the last cache."""
KEPT_BYTES = 320 * 2**20
"""Exponentials that PyTorch's forward keeps for a trained head's gradient; the backward recomputes the others."""
BUFFER_BYTES = 640 * 2**20
"""The logits of one chunk in Triton: 1,280 rows at a vocabulary of 128,256 in float32."""
