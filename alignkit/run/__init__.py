"""A run on disk and in progress: its folder, checkpoints, progress, pausing, and the checks at its start."""
