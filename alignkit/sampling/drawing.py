"""From prompts to K usable answers each: instructions in turn, filters, and further draws for what was filtered."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.sampling.sampler import Sampler


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How answers are drawn."""

    count: int = 11
    """K, answers a prompt."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    redraws: int = 2
    """How often answers are drawn anew in place of those that were filtered."""


@dataclass(frozen=True, slots=True)
class SamplingPrompt:
    """What answers are drawn to: one or more renderings of a prompt, taken in turn, and the answer none may equal."""

    renderings: tuple[tuple[int, ...], ...]
    """Token ids; with an instruction pool, one a instruction."""
    unwanted: str


@dataclass(slots=True)
class Drawn:
    """For each prompt its answers, at most K, in the order they were drawn; and how many were left out, by reason."""

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
    """K answers to each prompt, without empty ones, repeats and the unwanted one.

    Answers are compared as text without special tokens and outer blanks. A prompt that is still short after
    `redraws` further draws keeps what it has, which may be nothing. Raises what the sampler raises.
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
            seed=(seed + 7919 * attempt) % 2**31,
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
