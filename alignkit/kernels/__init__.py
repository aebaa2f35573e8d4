"""Fused logit heads: from hidden states and head weight to what a loss needs, never a [tokens, vocabulary] tensor."""

from alignkit.kernels.linear_logprob import LogProbs, linear_logprob

__all__ = ["LogProbs", "linear_logprob"]
