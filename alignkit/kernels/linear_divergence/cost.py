"""Buffer sizes of `linear_divergence` in bytes. Imports nothing, so that estimates can read it."""

CPU_CHUNK_BYTES = 24 * 2**20
"""A buffer of one chunk in PyTorch. There are two of logits and one for each gradient made at a time.

A side's first gradient overwrites its logits. The bytes that this saves go to the rows of a chunk.
"""
CPU_BLOCK_BYTES = 2**20
"""One temporary of a block of rows in PyTorch. A block has about eight, which fit in a core's cache."""
CPU_BLOCK_THREADS = 8
"""Most threads for which a block has a row each where its bytes would give it fewer."""
GPU_BUFFER_BYTES = 640 * 2**20
"""All buffers of one chunk in Triton: both models' logits, and the gradients that do not overwrite them."""
