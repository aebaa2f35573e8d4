"""Permissions on checkpoints: a project allows another project to use one of its models."""
