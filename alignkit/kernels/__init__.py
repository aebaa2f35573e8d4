"""Fused logit heads: from hidden states and a head's weight to what a loss needs, never [tokens, vocabulary] logits.

And `sinkhorn`, which transports the costs that `pairwise_l1` makes. Each op is a package: `records` (what goes in and
out), `fused` (the autograd function), `torch` and `triton` (its engines), `reference` (the oracle), `cost` (buffers).
"""

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
    "sinkhorn",
]
