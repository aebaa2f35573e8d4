"""Fixtures of other rooms that trainers use too."""

from tests.sampling.conftest import server

__all__ = ["server"]
