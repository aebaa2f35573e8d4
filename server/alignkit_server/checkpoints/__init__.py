"""Permissions on checkpoints: a project lets another one use a model of its own."""
