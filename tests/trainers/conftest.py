"""Fixtures of other test packages that the trainers' tests use too."""

from tests.sampling.conftest import server

__all__ = ["server"]
