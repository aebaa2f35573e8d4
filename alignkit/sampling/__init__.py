"""Sampling of answers from a model: with transformers in this process, or from an OpenAI-compatible server."""

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
