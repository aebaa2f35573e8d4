"""Buffer sizes of `linear_logprob`, in bytes unless said otherwise. Imports nothing, so estimates can read it."""

TOKENS = 2048
"""Rows of a tile in PyTorch: so many that reading the head costs little compared with the matmul."""
TILE_BYTES = 8 * 2**20
"""Float32 logits of one tile in PyTorch: about one core's share of the last-level cache."""
KEPT_BYTES = 320 * 2**20
"""Exponentials that PyTorch's forward keeps for a trained head's gradient. The backward recomputes the rest."""
BUFFER_BYTES = 640 * 2**20
"""Logits of one chunk in Triton: 1,280 rows at a vocabulary of 128,256 in float32."""
GPU_KEPT_BYTES = 4 * 2**30
"""Logit gradients that Triton's forward keeps for a trained head's gradient: 16,743 rows of 128,256 in 16 bits."""
GPU_KEPT_SHARE = 1 / 16
"""Maximum of the kept logit gradients as a share of the device's total memory.

Not of the free memory, which differs from run to run and would change the order of summation.
"""
