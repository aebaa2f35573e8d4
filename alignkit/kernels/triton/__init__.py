"""Triton kernels of the heads; imported only where they run."""
