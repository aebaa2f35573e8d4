"""Diversity of sampled answers: distinct n-grams, and self-BLEU (arXiv 1802.01886)."""

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
MOST_ANSWERS = 100
"""Answers that self-BLEU compares, the first ones: its cost grows with their square."""


def distinct_words(answers: Sequence[str], n: int) -> float:
    """Share of distinct n-grams of words among those of all answers, 0 to 1 (arXiv 1510.03055); 1 without any."""
    grams = [gram for answer in answers for gram in _grams(answer.split(), n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def self_bleu(answers: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each answer against all others, from 0 to 1: 1 if all are equal.

    Words are split at white space. Empty answers are left out, and None is returned where fewer than two are left.
    """
    words = [answer.split() for answer in answers[:MOST_ANSWERS] if answer.split()]
    if len(words) < 2:
        return None
    scores = [bleu(one, words[:index] + words[index + 1 :]) for index, one in enumerate(words)]
    return sum(scores) / len(scores)


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Sentence BLEU of `words` against references (Papineni et al. 2002), from 0 to 1.

    Orders up to 4, or to the number of words if there are fewer. The k-th precision without a match counts as 2^-k
    over its n-grams (the exponential smoothing of Chen and Cherry 2014).
    """
    orders = min(ORDERS, len(words))
    if not orders:
        return 0.0
    logs, missed = 0.0, 0
    for n in range(1, orders + 1):
        counts = Counter(_grams(words, n))
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= Counter(_grams(reference, n))
        matched = float((counts & most).total())
        if not matched:
            missed += 1
            matched = 2.0**-missed
        logs += math.log(matched / counts.total())
    closest = min((len(one) for one in references), key=lambda size: (abs(size - len(words)), size))
    return math.exp(min(0.0, 1 - closest / len(words)) + logs / orders)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))
