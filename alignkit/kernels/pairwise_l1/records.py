"""What `pairwise_l1` asks of an engine."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Engine(NamedTuple):
    """The two operations on a block's probabilities q [n, b] and p [m, b] that cost n m b; all else is products."""

    sums: Callable[[Tensor, Tensor, tuple[str, ...]], dict[str, Tensor]]
    """(q, p, names) -> the block's share of each named sum [n, m]: `distance` is D, `mass` R."""
    sign_sums: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(upstream [n, m], q, p) -> sum_j upstream_ij sign(q_iv - p_jv) [n, b]; the sign is 0 between equals."""
