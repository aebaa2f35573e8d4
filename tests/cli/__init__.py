"""The `alignkit` command, noun by noun, against a running service."""
