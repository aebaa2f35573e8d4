"""Fused logit heads: from hidden states and head weight to what a loss needs, never a [tokens, vocabulary] tensor."""

from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.kernels.linear_logprob import LogProbs, linear_logprob

__all__ = ["Divergences", "LogProbs", "linear_divergence", "linear_logprob"]
