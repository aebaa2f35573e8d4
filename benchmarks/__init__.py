"""Benchmarks: each prints one table and writes one JSON; peers are measured in the same run."""
