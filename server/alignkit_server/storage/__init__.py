"""Measuring and freeing the disk space of projects."""
