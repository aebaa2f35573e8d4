"""Similarity of a text to a reference, from 0 to 1. Words are lower-cased runs of letters and digits."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from alignkit.evaluate.diversity import bleu

_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(shared: int, left: int, right: int) -> float:
    return 2 * shared / (left + right) if shared else 0.0


def fuzzy_match(text: str, reference: str) -> float:
    """Indel similarity of the characters: 1 - (insertions + deletions) / (both lengths) (rapidfuzz's `ratio`)."""
    return float(fuzz.ratio(text, reference)) / 100


def sentence_bleu(text: str, reference: str) -> float:
    """BLEU-4 with exponential smoothing; see `alignkit.evaluate.diversity.bleu`."""
    words = _words(reference)
    return bleu(_words(text), [words]) if words else 0.0


def gleu(text: str, reference: str) -> float:
    """Smaller one of precision and recall over all n-grams of 1 to 4 words (arXiv 1609.08144)."""
    mine, theirs = _words(text), _words(reference)
    left = sum((_grams(mine, n) for n in range(1, 5)), Counter())
    right = sum((_grams(theirs, n) for n in range(1, 5)), Counter())
    most = max(left.total(), right.total())
    return (left & right).total() / most if most else 0.0


def _rouge(n: int) -> Callable[[str, str], float]:
    def rouge(text: str, reference: str) -> float:
        left, right = _grams(_words(text), n), _grams(_words(reference), n)
        return _f1((left & right).total(), left.total(), right.total())

    return rouge


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004)."""
    left, right = _words(text), _words(reference)
    return _f1(int(LCSseq.similarity(left, right)), len(left), len(right))


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": sentence_bleu,
    "gleu": gleu,
    **{f"rouge_{n}": _rouge(n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}
"""OpenAI's name of a metric -> its function of (text, reference)."""
REFUSED = {
    "cosine": "no model of embeddings is served",
    "meteor": "it needs a dictionary of synonyms",
}
"""Metrics of OpenAI's that are refused -> why."""
