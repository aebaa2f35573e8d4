"""Answers drawn from a model with an adapter, and how far its distribution over them is from the reference's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evidence.small_runs import Asked, Prompt

AT_ONCE = 16
"""Answers that are read at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A drawn answer."""

    prompt: int
    """Index of its prompt."""
    text: str
    ids: list[int]
    """Its tokens, with the end token where it has ended."""


def draw(asked: Asked, prompts: Sequence[Prompt], each: int, *, tokens: int, seed: int) -> list[Answer]:
    """Draw `each` answers of up to `tokens` tokens to each prompt at temperature 1."""
    torch.manual_seed(seed)
    order = [index for index in range(len(prompts)) for _ in range(each)]
    written = asked.generate([prompts[index] for index in order], tokens, sample=True)
    return [Answer(index, asked.text(ids), ids) for index, ids in zip(order, written, strict=True)]


@dataclass(frozen=True, slots=True)
class Distance:
    """How a policy differs from its reference over answers drawn from the policy."""

    kl: float
    """KL(policy || reference) of whole answers, in nats: the sum of each token's exact KL, a mean over answers."""
    entropy: float
    """Of the policy's next token, in nats."""


def distance(asked: Asked, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Distance:
    """Measure `asked` with its adapter against itself without, over answers that it drew."""
    kl, entropy, count = 0.0, 0.0, 0
    for first in range(0, len(answers), AT_ONCE):
        some = answers[first : first + AT_ONCE]
        rows = [(prompts[one.prompt], one.ids) for one in some]
        asked.scale(1.0)
        policy = asked.log_probs_of(rows)
        asked.scale(0.0)
        for log_p, log_q in zip(policy, asked.log_probs_of(rows), strict=True):
            p = log_p.exp()
            kl += float((p * (log_p - log_q)).sum())
            entropy -= float((p * log_p).sum())
            count += len(log_p)
    asked.scale(1.0)
    return Distance(kl / len(answers), entropy / count)
