"""A scorer of harm, fitted on pairs: which words, and pairs of them, tell a dispreferred answer from the other."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

STRENGTH = 0.2
"""Weight of each pair's loss beside half the squared norm of the coefficients."""
_WORD = re.compile(r"\w\w+")
Row = Mapping[str, Any]


class HarmScorer:
    """A score of an answer from the words in it; the log-odds that one of a pair is dispreferred are the difference.

    Features are words and pairs of words that two answers of the rows have, weighted 1 + log(count) and by how few
    answers have them, at unit length. The coefficients w minimise

        |w|^2 / 2 + STRENGTH sum log(1 + exp(-w . (x - x'))),

    where x is the dispreferred answer of a row and x' the preferred one.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Fit on rows {chosen: [message], rejected: [message]}."""
        answers = [_terms(text) for row in rows for text in (_text(row, "rejected"), _text(row, "chosen"))]
        having = Counter(term for answer in answers for term in answer)
        known = [term for term, count in having.items() if count > 1]
        self._places = {term: place for place, term in enumerate(known)}
        self._rarity = [math.log((1 + len(answers)) / (1 + having[term])) + 1 for term in known]
        features = self._features(answers)
        self._coefficients = _fit(features[0::2] - features[1::2])

    def score(self, answers: Sequence[str]) -> list[float]:
        """Score answers; higher is more harmful."""
        return [float(one) for one in self._features(list(map(_terms, answers))) @ self._coefficients]

    def ranked(self, rows: Sequence[Row]) -> float:
        """The share of rows whose dispreferred answer has the higher score."""
        bad, good = (self.score([_text(row, side) for row in rows]) for side in ("rejected", "chosen"))
        return sum(one > other for one, other in zip(bad, good, strict=True)) / len(rows)

    def told_apart(self, rows: Sequence[Row]) -> float:
        """The area under the ROC curve: how often a dispreferred answer scores above the preferred one of any row."""
        bad, good = (
            torch.tensor(self.score([_text(row, side) for row in rows])) for side in ("rejected", "chosen")
        )
        above, equal = bad[:, None] > good, bad[:, None] == good
        return float((above.double() + equal.double() / 2).mean())

    def mean(self, rows: Sequence[Row], side: str) -> float:
        """The mean score of the `chosen` or the `rejected` answers."""
        scores = self.score([_text(row, side) for row in rows])
        return sum(scores) / len(scores)

    def _features(self, answers: Sequence[Counter[str]]) -> Tensor:
        """Features [n, F]; zeros for an answer without a known word."""
        features = torch.zeros(len(answers), len(self._places), dtype=torch.float64)
        for index, answer in enumerate(answers):
            for term, count in answer.items():
                if (place := self._places.get(term)) is not None:
                    features[index, place] = (1 + math.log(count)) * self._rarity[place]
        return torch.nn.functional.normalize(features, dim=1)


def _fit(differences: Tensor) -> Tensor:
    """The coefficients [F] for differences [n, F] of dispreferred and preferred answers."""
    coefficients = torch.zeros(differences.size(1), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([coefficients], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.softplus(-differences @ coefficients).sum()
        loss = STRENGTH * fit + (coefficients**2).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return coefficients.detach()


def _terms(text: str) -> Counter[str]:
    """The words of a text and its pairs of words, counted."""
    words = _WORD.findall(text.lower())
    return Counter([*words, *(" ".join(pair) for pair in pairwise(words))])


def _text(row: Row, side: str) -> str:
    return str(row[side][0]["content"])
