"""Samples K usable answers per prompt: rotates instructions, filters answers, and redraws what was filtered."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.sampling.sampler import Sampler

SEED_STRIDE = 7919
"""Distance of the seeds of two rounds, a prime; the requests of a round count up from its seed."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Options for sampling answers."""

    count: int = 11
    """K, the number of answers per prompt."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    redraws: int = 2
    """Number of further rounds that replace filtered answers."""


@dataclass(frozen=True, slots=True)
class SamplingPrompt:
    """A prompt to sample answers for: its renderings, used in turn, and an answer that samples must not equal."""

    renderings: tuple[tuple[int, ...], ...]
    """Token ids; with an instruction pool, one rendering per instruction."""
    unwanted: str


@dataclass(slots=True)
class Drawn:
    """The answers of each prompt, at most K, in the order drawn; and the number of filtered ones by reason."""

    answers: list[list[list[int]]]
    left_out: list[Counter[str]]


def draw(
    prompts: Sequence[SamplingPrompt],
    sampler: Sampler,
    tokenizer: Any,
    options: SamplingOptions,
    *,
    seed: int,
) -> Drawn:
    """Sample K answers per prompt, without empty ones, repeats and the unwanted one.

    Answers are compared as text without special tokens and surrounding whitespace. A prompt that is still short after
    `redraws` rounds keeps what it has, which may be nothing. Raises the sampler's errors.
    """
    drawn = Drawn([[] for _ in prompts], [Counter() for _ in prompts])
    seen = [{"": "empty", prompt.unwanted.strip(): "equal to the dispreferred answer"} for prompt in prompts]
    turns = [random.Random(seed + index).randrange(len(one.renderings)) for index, one in enumerate(prompts)]
    for attempt in range(1 + options.redraws):
        wanted = [
            index for index, answers in enumerate(drawn.answers) for _ in range(options.count - len(answers))
        ]
        if not wanted:
            break
        renderings = []
        for index in wanted:
            choices = prompts[index].renderings
            renderings.append(choices[turns[index] % len(choices)])
            turns[index] += 1
        completions = sampler.complete(
            renderings,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            seed=(seed + SEED_STRIDE * attempt) % 2**31,
        )
        for index, ids in zip(wanted, completions, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            reason = seen[index].get(text)
            if reason is None:
                seen[index][text] = "repeated"
                drawn.answers[index].append(ids)
            else:
                drawn.left_out[index][reason] += 1
    return drawn
