"""The catalog of models: their names, their rows, and the base models on disk."""
