"""Executors, which run the training: one protocol, with local processes as the default."""
