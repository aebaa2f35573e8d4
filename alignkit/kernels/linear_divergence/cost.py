"""Buffer sizes of `linear_divergence` in bytes. Imports nothing, so that estimates can read it."""

CPU_CHUNK_BYTES = 24 * 2**20
"""Float32 logits of one chunk of one model in PyTorch. Each gradient of a chunk takes as much again."""
CPU_BLOCK_BYTES = 2**20
"""One temporary of a block of rows in PyTorch. A block has about eight, which fit in a core's cache."""
GPU_BUFFER_BYTES = 640 * 2**20
"""All buffers of one chunk in Triton: both models' logits, and the gradients that do not overwrite them."""
