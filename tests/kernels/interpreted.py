"""Fewer and smaller cases for Triton's interpreter, which is a hundred times slower than compiled code."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from alignkit.kernels.backend import interpreted


def few(count: int, most: int = 4) -> int:
    """`count` rows; at most `most` of them under the interpreter."""
    return min(count, most) if interpreted() else count


def thorough(*values: Any) -> Any:
    """A case that is slow under the interpreter and has representatives in the ordinary suite."""
    return pytest.param(*values, marks=pytest.mark.slow) if interpreted() else pytest.param(*values)


def grid(*axes: Sequence[Any], representative: Iterable[str]) -> list[Any]:
    """All combinations; under the interpreter those not in `representative` are slow.

    Each representative has one digit an axis, the index of its value.
    """
    kept = set(representative)
    places = itertools.product(*(range(len(axis)) for axis in axes))
    return [
        (pytest.param if "".join(map(str, place)) in kept else thorough)(
            *(axis[index] for axis, index in zip(axes, place, strict=True))
        )
        for place in places
    ]
