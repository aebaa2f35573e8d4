"""Fused language-model heads, which compute losses without ever making the [tokens, vocabulary] logits.

The package also has `sinkhorn`, for the costs of `pairwise_l1`, and in `plans` other solvers of that transport. Each
op is a package with the modules `records` (input and output types), `fused` (autograd function), `torch` and `triton`
(engines), `reference` (oracle) and `cost` (buffer sizes).
"""

from alignkit.kernels import plans
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.kernels.linear_logprob import LogProbs, linear_logprob
from alignkit.kernels.pairwise_l1 import pairwise_l1
from alignkit.kernels.sinkhorn import Plan, sinkhorn

__all__ = [
    "Divergences",
    "LogProbs",
    "Plan",
    "linear_divergence",
    "linear_logprob",
    "pairwise_l1",
    "plans",
    "sinkhorn",
]
