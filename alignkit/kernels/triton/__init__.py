"""The heads in Triton: cuBLAS fills a bounded buffer with products, kernels read it and rewrite it in place."""
