"""Fused logit heads: from hidden states and head weight to what a loss needs, never a [tokens, vocabulary] tensor.

And `sinkhorn`, which takes what one of them makes.
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
