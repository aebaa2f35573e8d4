"""Answers drawn from a model: by transformers in this process, or by a server that speaks OpenAI's protocol."""

from alignkit.sampling.drawing import Drawn, SamplingOptions, SamplingPrompt, draw
from alignkit.sampling.local import LocalSampler
from alignkit.sampling.sampler import Sampler, SamplingError
from alignkit.sampling.server import ServerSampler
from alignkit.sampling.store import SampleStore, digest

__all__ = [
    "Drawn",
    "LocalSampler",
    "SampleStore",
    "Sampler",
    "SamplingError",
    "SamplingOptions",
    "SamplingPrompt",
    "ServerSampler",
    "digest",
    "draw",
]
