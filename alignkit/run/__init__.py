"""A run on disk and while it goes: its folder, checkpoints, progress, pausing, and the checks at its start."""
