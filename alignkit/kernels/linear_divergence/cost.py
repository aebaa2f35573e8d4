"""Bytes that `linear_divergence` allows itself. Imports nothing, so that an estimate may read it anywhere."""

CPU_CHUNK_BYTES = 24 * 2**20
"""One chunk's float32 logits in PyTorch; there are two at a time, and as much again for each gradient at a time."""
CPU_BLOCK_BYTES = 2**20
"""One temporary of a block of rows in PyTorch: the eight or so of a block stay in a core's cache."""
GPU_BUFFER_BYTES = 640 * 2**20
"""One chunk in Triton: both models' logits, and the gradients that are not written over them."""
