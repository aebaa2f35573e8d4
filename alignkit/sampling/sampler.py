"""What draws answers."""

from collections.abc import Sequence
from typing import Protocol

from alignkit.errors import AlignkitError


class SamplingError(AlignkitError):
    """No answers could be drawn; the message says from what, and why."""


class Sampler(Protocol):
    """Draws one answer to each prompt."""

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
    ) -> list[list[int]]:
        """Token ids of one answer a prompt, its end token included where it was reached.

        A prompt that occurs n times gets n independent answers. The same arguments give the same answers, as far
        as the model's arithmetic repeats. Raises SamplingError.
        """
        ...
