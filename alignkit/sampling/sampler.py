"""The interface of samplers."""

from collections.abc import Sequence
from typing import Protocol

from alignkit.errors import AlignkitError


class SamplingError(AlignkitError):
    """Answers could not be sampled; the message says from what, and why."""


class Sampler(Protocol):
    """Samples one answer per prompt."""

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
    ) -> list[list[int]]:
        """Token ids of one answer per prompt, including its end token if it was reached.

        A prompt that occurs n times gets n independent answers. Equal arguments give equal answers, as far as the
        model's arithmetic is reproducible. Raises SamplingError.
        """
        ...
