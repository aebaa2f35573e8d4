"""The interface of `pairwise_l1`'s engines."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Engine(NamedTuple):
    """The two operations on a block's probabilities q [n, b] and p [m, b] that are no matmuls and cost n m b."""

    sums: Callable[[Tensor, Tensor, tuple[str, ...]], dict[str, Tensor]]
    """(q, p, names) -> the block's share of each named sum [n, m]: `distance` is D, `mass` is R."""
    sign_sums: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(upstream [n, m], q, p) -> sum_j upstream_ij sign(q_iv - p_jv) [n, b]. The sign of 0 is 0."""
    makes_mass: bool = True
    """Whether R costs little beside D. If not, it is avoided where a matmul can replace it."""
