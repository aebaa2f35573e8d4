"""The heads in PyTorch: tiles of tokens by vocabulary, each small enough for a cache."""
