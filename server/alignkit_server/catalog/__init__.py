"""Which models there are: their names, their rows, and the base models on the disk."""
