"""Scores of the answers to one conversation: by a judge, a reward model, or a function of the user's."""

import importlib
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Protocol

from alignkit.data.messages import Message
from alignkit.errors import AlignkitError
from alignkit.evaluate.judging import Comparison, Judge
from alignkit.evaluate.reward_model import RewardModel

Rule = Callable[[list[Message], str], float]
"""A function of a conversation and an answer that returns the answer's score, higher for better."""
_POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}


class Ranker(Protocol):
    """Scores answers."""

    def scores(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float | None]:
        """The score of each answer, higher for better; None where there is none."""
        ...


class JudgeRanker:
    """Compares every two answers; a score is the share of points in an answer's comparisons, a tie's being a half."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def scores(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float | None]:
        """See Ranker. Invalid verdicts do not count."""
        prompt = "\n\n".join(f"{one.get('role')}: {one.get('content')}" for one in messages)
        pairs = list(combinations(range(len(answers)), 2))
        judged = self._judge.compare([Comparison(prompt, answers[a], answers[b]) for a, b in pairs])
        points: list[list[float]] = [[] for _ in answers]
        for (a, b), one in zip(pairs, judged, strict=True):
            if one.outcome != "invalid":
                points[a].append(_POINTS[one.outcome])
                points[b].append(1 - _POINTS[one.outcome])
        return [sum(found) / len(found) if found else None for found in points]


class RewardRanker:
    """Scores with a reward model."""

    def __init__(self, model: RewardModel) -> None:
        self._model = model

    def scores(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float | None]:
        """See Ranker."""
        found = self._model.score([[*messages, {"role": "assistant", "content": text}] for text in answers])
        return [score if math.isfinite(score) else None for score in found]


class RuleRanker:
    """Scores with the function at `package.module:function`. Raises AlignkitError if there is none."""

    def __init__(self, path: str) -> None:
        self._rule, self._path = _imported(path), path

    def scores(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float | None]:
        """See Ranker. Raises AlignkitError if the function fails, or returns no number."""
        return [self._score(list(messages), text) for text in answers]

    def _score(self, messages: list[Message], answer: str) -> float | None:
        try:
            found: Any = self._rule(messages, answer)
        except Exception as error:  # it is the user's
            raise AlignkitError(f"the rule {self._path} failed: {type(error).__name__}: {error}") from error
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise AlignkitError(f"the rule {self._path}: expected a number, found {type(found).__name__}")
        return float(found) if math.isfinite(found) else None


def _imported(path: str) -> Rule:
    module, _, name = path.partition(":")
    if not module or not name:
        raise AlignkitError(f"--rule: expected package.module:function, found {path!r}")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise AlignkitError(f"--rule: cannot import {path}: {error}") from error
    if not callable(found):
        raise AlignkitError(f"--rule: expected a function, found {type(found).__name__} at {path}")
    rule: Rule = found
    return rule
