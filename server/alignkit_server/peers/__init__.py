"""Servers of one database: each says that it lives, and takes up the jobs of one that does not."""
